"""Rows and metrics of `alphapo measure`: the probe's, joined with the scores of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe import displacement
from alphapo_cli.probe.displacement import ProbeValues
from alphapo_cli.probe.pair_scores import Numbers, idealised_margin, log_prob_scores, token_scores
from alphapo_cli.probe.rank_correlation import spearman
from alphapo_cli.probe.score_names import NAMES

_REWARDS = ("rewards/", "displacement/margin_from_chosen", "shape/")
_GRADIENTS = ("gradient_weight/",)


@dataclass(frozen=True)
class Comparison:
    """A model measured against its start on P pairs.

    Attributes:
        now: values under the model.
        start: values under the start.
        scores: name -> [P], as `scores_of` gives them.
        unknown: beginning of a metric's key -> why its value is not known.
        step: optimizer step of a run's model; None for other models.
    """

    now: ProbeValues
    start: ProbeValues
    scores: Mapping[str, Numbers]
    unknown: Mapping[str, str]
    step: int | None = None


def scores_of(
    states: Mapping[str, Numbers], start: ProbeValues, pairs: TokenPairs, objective: Objective
) -> dict[str, Numbers]:
    """All scores of the pairs under the start model.

    Args:
        states: those of its hidden states, from `pair_scores.batch_scores`.
        start: the probe's values under it.
        pairs: P pairs.
        objective: its label column, if any, has the probability of each preference, for `idealised_margin`.

    Returns:
        Name -> [P], NaN where a score is undefined.
    """
    found = {**token_scores(pairs), **states, **log_prob_scores(start.sums, start.lengths, start.rounding)}
    found = {name: found[name] for name in NAMES}
    label = objective.label_column
    if label is not None and label in pairs.columns:
        found["idealised_margin"] = idealised_margin(found["reference_gap"], pairs.columns[label], objective.beta)
    return found


def unknown_keys(objective: Objective, *, moved: bool) -> dict[str, str]:
    """The keys that a model's weights, its start and the pairs do not decide.

    Args:
        objective: the objective.
        moved: whether the model was trained from the start.

    Returns:
        Beginning of a key -> reason.
    """
    reasons: dict[str, str] = {}
    if not moved:
        return reasons
    states = objective.start.states
    if objective.reference_every is not None:
        reason = "the reference moved during training, and a finished run does not keep it"
        reasons |= dict.fromkeys((*_REWARDS, *_GRADIENTS), reason)
    elif "schedule" in states:
        reason = "the schedule moved a parameter by what it measured, and a finished run does not keep its state"
        reasons |= dict.fromkeys((*_REWARDS, *_GRADIENTS), reason)
    elif states:
        kinds = " and ".join(sorted(states))
        reason = f"the objective's {kinds} has a memory of training, which a finished run does not keep"
        reasons |= dict.fromkeys(_GRADIENTS, reason)
    return reasons


def metrics(comparison: Comparison, pairs: TokenPairs, by_source: Sequence[str]) -> dict[str, float | None]:
    """The probe's row of metrics, those of `by_source` for each source, and means and quantiles of `pairs/<score>`."""
    now, start = comparison.now, comparison.start
    row = displacement.metrics(now, start) | displacement.by_source(now, start, pairs, by_source)
    row = {key: None if _reason(key, comparison.unknown) else value for key, value in row.items()}
    for name, values in comparison.scores.items():
        known = values[~np.isnan(values)]
        if name == "start_prefers_chosen":
            row["ranking/start_accuracy"] = _mean(known)
        elif name == "idealised_margin":
            row["ranking/idealised_accuracy"] = _mean((known > 0) + 0.5 * (known == 0))
        else:
            row[f"pairs/{name}"] = _mean(known)
            for q in displacement.QUANTILES:
                row[f"pairs/{name}/p{q}"] = float(np.percentile(known, q)) if known.size else None
    return row


def unknown_of(comparison: Comparison, row: Mapping[str, float | None]) -> dict[str, str]:
    """Key -> reason for the metrics of `row` that are null because something of training is not kept."""
    return {key: reason for key in row if (reason := _reason(key, comparison.unknown)) is not None}


def rows(comparison: Comparison, pairs: TokenPairs, sets: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of measured.jsonl: those of probe.jsonl with the quadrant, the pair's scores and where it is from.

    Args:
        comparison: the values of P pairs.
        pairs: the pairs.
        sets: [P] probe or train.

    Returns:
        One row a pair.
    """
    found: list[dict[str, Any]] = []
    for p, row in enumerate(displacement.per_pair(comparison.now, comparison.start, comparison.step or 0)):
        row = {key: None if _reason(key, comparison.unknown) else value for key, value in row.items()}
        chosen, rejected = row["displacement/chosen"], row["displacement/rejected"]
        quadrant = None if chosen is None or rejected is None else f"{_way(chosen)}_{_way(rejected)}"
        scores = {name: float(values[p]) for name, values in comparison.scores.items()}
        place = {"set": sets[p], "row": int(pairs.index[p]) + 1}
        found.append({**row, "step": comparison.step, **place, "quadrant": quadrant, **scores})
    return found


def correlations(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Rank correlation over the pairs of each score with the chosen answer's displacement, in nats per token."""
    now, start = comparison.now, comparison.start
    moved = (now.sums[0] - start.sums[0]) / np.maximum(now.lengths[0], 1)
    moved = np.where(now.lengths[0] > 0, moved, np.nan)
    return {name: asdict(spearman(values, moved)) for name, values in comparison.scores.items()}


def _reason(key: str, unknown: Mapping[str, str]) -> str | None:
    """Why the value of a key is not known; None where it is."""
    if key.startswith("source/"):
        key = "/".join(key.split("/")[2:])
    return next((reason for beginning, reason in unknown.items() if key.startswith(beginning)), None)


def _way(displacement: float) -> str:
    return "down" if displacement < 0 else "up"


def _mean(values: Numbers) -> float | None:
    return float(np.mean(values)) if values.size and np.isfinite(values).all() else None

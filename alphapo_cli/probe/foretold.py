"""Scores of the probe pairs before training, and how well each has foretold what became of the chosen answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import ProbeValues
from alphapo_cli.probe.idealised import MARGIN, preference_column
from alphapo_cli.probe.pair_scores import Numbers, batch_scores, idealised_margin, log_prob_scores, token_scores
from alphapo_cli.probe.probe import BatchObservation
from alphapo_cli.probe.rank_correlation import Correlation, spearman
from alphapo_cli.probe.score_names import NAMES
from alphapo_cli.runtime.distributed import Processes


class StateScores:
    """Collects the scores of P pairs from the hidden states of the start: an observer of the probe's first pass."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.parts: list[tuple[list[int], dict[str, Numbers]]] = []

    def __call__(self, seen: BatchObservation) -> None:
        """Take the scores of a batch; a repeated one, which has no pairs of its own, is not counted."""
        if seen.chunk:
            self.parts.append((seen.chunk, batch_scores(seen.hidden, seen.batch)))

    def gather(self, processes: Processes) -> dict[str, Numbers]:
        """Join the scores of all processes: name -> [P]."""
        values: dict[str, Numbers] = {}
        for chunk, scores in processes.gather(self.parts):
            for name, of_batch in scores.items():
                values.setdefault(name, np.full(self.pairs, np.nan))[chunk] = of_batch
        return values


def scores_of(
    states: Mapping[str, Numbers], start: ProbeValues, pairs: TokenPairs, objective: Objective
) -> dict[str, Numbers]:
    """All scores of the pairs under the start model.

    Args:
        states: those of its hidden states, from `StateScores`.
        start: the probe's values under it.
        pairs: P pairs.
        objective: says which column, if any, has the probability of each preference, for `idealised_margin`.

    Returns:
        Name -> [P], NaN where a score is undefined.
    """
    found = {**token_scores(pairs), **states, **log_prob_scores(start.sums, start.lengths, start.rounding)}
    found = {name: found[name] for name in NAMES}
    column = preference_column(objective, pairs.columns)
    if column is not None:
        found[MARGIN] = idealised_margin(found["reference_gap"], pairs.columns[column], objective.beta)
    return found


def correlations(scores: Mapping[str, Numbers], now: ProbeValues, start: ProbeValues) -> dict[str, Correlation]:
    """Correlate the ranks of each score with those of the chosen answer's displacement, in nats per token.

    Args:
        scores: name -> [P].
        now: the values of this step.
        start: the values before training.

    Returns:
        Name -> correlation over the pairs; a pair without the score or the answer is left out.
    """
    moved = (now.sums[0] - start.sums[0]) / np.maximum(now.lengths[0], 1)
    moved = np.where(now.lengths[0] > 0, moved, np.nan)
    return {name: spearman(values, moved) for name, values in scores.items()}


def metrics(scores: Mapping[str, Numbers], now: ProbeValues, start: ProbeValues) -> dict[str, float | None]:
    """The correlations as `foretold/<score>` with `/low` and `/high`, and the pairs of `foretold/ches`."""
    found = correlations(scores, now, start)
    row: dict[str, float | None] = {}
    for name, one in found.items():
        row |= {f"foretold/{name}": one.rho, f"foretold/{name}/low": one.low, f"foretold/{name}/high": one.high}
    return row | {"foretold/pairs": float(found["ches"].pairs)}

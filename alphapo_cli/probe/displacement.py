"""Metrics of the displacement probe: pure functions from per-pair values, now and at step 0, to flat metrics.

Only here are values aggregated over pairs. What is undefined is `None` (JSON null), never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.logprobs import AnswerLogProbs, share_above
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective

QUANTILES = (10, 50, 90)
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class ProbeValues:
    """Per-pair values of P probe pairs, float64 arrays; K sides, of which the metrics read the first two.

    An absent answer has length 0, and its other values have no meaning.
    """

    sums: np.ndarray  # [K, P] summed log-probs, chosen first
    lengths: np.ndarray  # [K, P] completion tokens
    scores: np.ndarray  # [K, P] the objective's score
    rewards: np.ndarray  # [K, P] beta h(s)
    slopes: np.ndarray  # [K, P] h'(s)
    gradients: np.ndarray  # [K, P] d loss / d score
    entropy: np.ndarray  # [P] mean over the chosen completion's tokens, nats
    kl: np.ndarray  # [P] mean over the chosen completion's tokens of KL(now || step 0), nats
    rounding: np.ndarray  # [K, P] bound on the rounding error of the sums, nats
    reward_rounding: np.ndarray  # [K, P] bound on the rounding error of the rewards


@np.errstate(invalid="ignore")  # undefined differences of infinities become null, not a warning
def metrics(now: ProbeValues, start: ProbeValues) -> dict[str, float | None]:
    """Aggregate the probe's row of metrics.jsonl.

    Displacement is in nats per token (difference of the sums over the number of completion tokens), `_sum` in nats per
    answer. An order within rounding is a tie, which counts half (see `logprobs.share_above`). Now and before are scored
    in the same batches, so what has not moved is equal to the last bit.

    Args:
        now: the measurement of this step.
        start: the measurement before the first step.

    Returns:
        Metric -> value, None if it is undefined.
    """
    row: dict[str, float | None] = {}
    change = now.sums - start.sums  # [K, P]
    fell = change < 0
    present = now.lengths > 0
    for i, side in enumerate(SIDES):
        p = present[i]
        _spread(row, f"displacement/{side}", change[i, p] / now.lengths[i, p])
        _spread(row, f"displacement/{side}_sum", change[i, p], quantiles=False)
        _spread(row, f"logps/{side}", now.sums[i, p] / now.lengths[i, p])
        _spread(row, f"logps/{side}_sum", now.sums[i, p], quantiles=False)
        _spread(row, f"rewards/{side}", now.rewards[i, p])
        _spread(row, f"gradient_weight/{side}", now.gradients[i, p])
    row["shape/slope"] = _mean(now.slopes[:2][present[:2]])
    row["displacement/share_chosen_down"] = _mean(fell[0, present[0]])
    both = present[0] & present[1]  # metrics from here on compare the two, and are null if no row has both
    down = fell[:, both]
    for name, chosen_down, rejected_down in (
        ("up_up", False, False),
        ("up_down", False, True),
        ("down_up", True, False),
        ("down_down", True, True),
    ):
        row[f"displacement/quadrant/{name}"] = _mean((down[0] == chosen_down) & (down[1] == rejected_down))
    rewards, rewards_before = now.rewards[:2, both], start.rewards[:2, both]
    margins = rewards[0] - rewards[1]
    row["displacement/margin_from_chosen"] = None
    if margins.size:
        growth = margins.mean() - (rewards_before[0] - rewards_before[1]).mean()
        from_chosen = rewards[0].mean() - rewards_before[0].mean()
        row["displacement/margin_from_chosen"] = _finite(from_chosen / growth) if growth > 0 else None
    _spread(row, "rewards/margins", margins)
    row["rewards/accuracies"] = _mean(_accuracy(now)[both])
    order, before = (_order(v.sums, v.rounding)[both] for v in (now, start))
    lengths = np.maximum(now.lengths, 1)
    row["ranking/accuracy"] = _mean(order)
    row["ranking/accuracy_length_normalised"] = _mean(_order(now.sums / lengths, now.rounding / lengths)[both])
    row["ranking/flipped"] = _mean(np.abs(order - before))
    row["kl/reference"] = _mean(now.kl[present[0]])
    row["entropy/chosen"] = _mean(now.entropy[present[0]])
    return row


def by_source(now: ProbeValues, start: ProbeValues, pairs: TokenPairs, keys: Sequence[str]) -> dict[str, float | None]:
    """Metrics for each source of a mixture, as `source/<name>/<key>`.

    Args:
        now: the measurement of this step.
        start: the measurement before the first step.
        pairs: the probe pairs.
        keys: which of `metrics`.

    Returns:
        Metric -> value, None where the probe has no pairs of the source; nothing for pairs of a single source.
    """
    row: dict[str, float | None] = {}
    if pairs.source is None:
        return row
    for number, name in enumerate(pairs.source_names):
        of_source = np.asarray(pairs.source == number)
        own = metrics(_select(now, of_source), _select(start, of_source))
        row |= {f"source/{name}/{key}": own[key] for key in keys}
    return row


def _select(values: ProbeValues, where: np.ndarray) -> ProbeValues:
    """The values of some of the pairs."""
    return ProbeValues(**{field.name: getattr(values, field.name)[..., where] for field in fields(values)})


def per_pair(now: ProbeValues, start: ProbeValues, step: int) -> list[dict[str, float | int | None]]:
    """Rows of probe.jsonl, one a pair: the values behind the means."""
    rows: list[dict[str, float | int | None]] = []
    accuracy = _accuracy(now)
    for p in range(now.sums.shape[1]):
        row: dict[str, float | int | None] = {"step": step, "pair": p}
        for i, side in enumerate(SIDES):
            present = now.lengths[i, p] > 0
            change = (now.sums[i, p] - start.sums[i, p]) / max(now.lengths[i, p], 1)
            row[f"logps/{side}_sum"] = _finite(now.sums[i, p]) if present else None
            row[f"tokens/{side}"] = int(now.lengths[i, p])
            row[f"displacement/{side}"] = _finite(change) if present else None
            row[f"scores/{side}"] = _finite(now.scores[i, p]) if present else None
            row[f"rewards/{side}"] = _finite(now.rewards[i, p]) if present else None
            row[f"gradient_weight/{side}"] = _finite(now.gradients[i, p]) if present else None
        row["rewards/accuracies"] = float(accuracy[p]) if (now.lengths[:2, p] > 0).all() else None
        rows.append(row)
    return rows


def _order(values: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Whether the chosen answer has the higher of `values` [K, P], [P]: 1, 0 or, within rounding, 0.5."""
    ordered: np.ndarray = share_above(values[0] - values[1], np.hypot(*rounding[:2]))
    return ordered


def _accuracy(now: ProbeValues) -> np.ndarray:
    """Whether the chosen answer has the higher reward, [P]: 1, 0 or, within rounding, 0.5."""
    return _order(now.rewards, now.reward_rounding)


def objective_values(objective: Objective, answers: AnswerLogProbs, context: StepContext) -> dict[str, np.ndarray]:
    """Compute scores, rewards, slopes, gradients and reward_rounding, each [K, P], of P pairs' answers."""
    answers = answers.to_float32()
    scores = objective.scores(answers)
    scheduled = objective.at(context)
    tensors = {
        "scores": scores,
        "rewards": scheduled.rewards(scores),
        "slopes": scheduled.slopes(scores),
        "gradients": objective.score_gradients(scores, answers, context),
        "reward_rounding": scheduled.reward_rounding(answers),
    }
    return {name: values.double().numpy() for name, values in tensors.items()}


def _spread(row: dict[str, float | None], key: str, values: np.ndarray, *, quantiles: bool = True) -> None:
    row[key] = _mean(values)
    for q in QUANTILES if quantiles else ():
        row[f"{key}/p{q}"] = _finite(np.percentile(values, q)) if values.size else None


def _mean(values: np.ndarray) -> float | None:
    return _finite(np.mean(values)) if values.size else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

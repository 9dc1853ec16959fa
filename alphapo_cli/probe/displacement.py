"""What the displacement probe reports: pure functions from per-pair values, now and at step 0, to flat metrics.

Values are aggregated over pairs only here. `None` stands for what is undefined (JSON null), never NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alphapo_cli.modeling.logprobs import AnswerLogProbs, above
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective

QUANTILES = (10, 50, 90)
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class ProbeValues:
    """Per-pair values of P probe pairs, float64 arrays; K sides, of which the metrics read the first two.

    An absent answer has no tokens, and its other values stand for nothing.
    """

    sums: np.ndarray  # [K, P] summed log-probs, chosen first
    lengths: np.ndarray  # [K, P] completion tokens
    scores: np.ndarray  # [K, P] the objective's score
    rewards: np.ndarray  # [K, P] beta h(s)
    gradients: np.ndarray  # [K, P] d loss / d score
    entropy: np.ndarray  # [P] mean over the chosen completion's tokens, nats
    kl: np.ndarray  # [P] mean over the chosen completion's tokens of KL(now || step 0), nats
    rounding: np.ndarray  # [K, P] bound on the rounding error of the sums, nats
    reward_rounding: np.ndarray  # [K, P] bound on the rounding error of the rewards


@np.errstate(invalid="ignore")  # what infinities make undefined becomes null, not a warning
def metrics(now: ProbeValues, start: ProbeValues) -> dict[str, float | None]:
    """The probe's row of metrics.jsonl.

    Displacement is in nats per token (sum difference over the number of completion tokens), `_sum` in nats per answer.
    What lies within rounding has no sign (see `logprobs.above`): an order is a tie there, which counts half, and a
    log-prob has not moved.
    """
    row: dict[str, float | None] = {}
    change = now.sums - start.sums  # [K, P]
    fell = change < -np.hypot(now.rounding, start.rounding)
    there = now.lengths > 0
    for i, side in enumerate(SIDES):
        p = there[i]
        _spread(row, f"displacement/{side}", change[i, p] / now.lengths[i, p])
        _spread(row, f"displacement/{side}_sum", change[i, p], quantiles=False)
        _spread(row, f"logps/{side}", now.sums[i, p] / now.lengths[i, p])
        _spread(row, f"logps/{side}_sum", now.sums[i, p], quantiles=False)
        _spread(row, f"rewards/{side}", now.rewards[i, p])
        _spread(row, f"gradient_weight/{side}", now.gradients[i, p])
    row["displacement/share_chosen_down"] = _mean(fell[0, there[0]])
    both = there[0] & there[1]  # what follows compares the two, and is null where no row has both
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
        four = np.stack([now.reward_rounding[:2, both], start.reward_rounding[:2, both]])
        grown = growth > np.sqrt((four**2).sum()) / margins.size  # independent errors add in squares
        row["displacement/margin_from_chosen"] = _finite(from_chosen / growth) if grown else None
    _spread(row, "rewards/margins", margins)
    row["rewards/accuracies"] = _mean(_accuracy(now)[both])
    order, before = (_order(v.sums, v.rounding)[both] for v in (now, start))
    lengths = np.maximum(now.lengths, 1)
    row["ranking/accuracy"] = _mean(order)
    row["ranking/accuracy_length_normalised"] = _mean(_order(now.sums / lengths, now.rounding / lengths)[both])
    row["ranking/flipped"] = _mean(np.abs(order - before))
    row["kl/reference"] = _mean(now.kl[there[0]])
    row["entropy/chosen"] = _mean(now.entropy[there[0]])
    return row


def per_pair(now: ProbeValues, start: ProbeValues, step: int) -> list[dict[str, float | int | None]]:
    """Rows of probe.jsonl, one a pair: the values behind the means."""
    rows: list[dict[str, float | int | None]] = []
    accuracy = _accuracy(now)
    for p in range(now.sums.shape[1]):
        row: dict[str, float | int | None] = {"step": step, "pair": p}
        for i, side in enumerate(SIDES):
            there = now.lengths[i, p] > 0
            change = (now.sums[i, p] - start.sums[i, p]) / max(now.lengths[i, p], 1)
            row[f"logps/{side}_sum"] = _finite(now.sums[i, p]) if there else None
            row[f"tokens/{side}"] = int(now.lengths[i, p])
            row[f"displacement/{side}"] = _finite(change) if there else None
            row[f"rewards/{side}"] = _finite(now.rewards[i, p]) if there else None
            row[f"gradient_weight/{side}"] = _finite(now.gradients[i, p]) if there else None
        row["rewards/accuracies"] = float(accuracy[p]) if (now.lengths[:2, p] > 0).all() else None
        rows.append(row)
    return rows


def _order(values: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """[P] whether the chosen answer has the higher of `values` [K, P]: 1, 0 or, within rounding, 0.5."""
    ordered: np.ndarray = above(values[0] - values[1], rounding[0] + rounding[1])
    return ordered


def _accuracy(now: ProbeValues) -> np.ndarray:
    """[P] whether the chosen answer has the higher reward: 1, 0 or, within rounding, 0.5."""
    return _order(now.rewards, now.reward_rounding)


def objective_values(objective: Objective, answers: AnswerLogProbs, context: StepContext) -> dict[str, np.ndarray]:
    """scores, rewards, gradients (d loss / d score) and reward_rounding, each [K, P], of P pairs' answers."""
    answers = answers.widened()
    scores = objective.scores(answers)
    here = objective.at(context)
    found = {
        "scores": scores,
        "rewards": here.rewards(scores),
        "gradients": objective.score_gradients(scores, answers, context),
        "reward_rounding": here.reward_rounding(answers),
    }
    return {name: values.double().numpy() for name, values in found.items()}


def _spread(row: dict[str, float | None], key: str, values: np.ndarray, *, quantiles: bool = True) -> None:
    row[key] = _mean(values)
    for q in QUANTILES if quantiles else ():
        row[f"{key}/p{q}"] = _finite(np.percentile(values, q)) if values.size else None


def _mean(values: np.ndarray) -> float | None:
    return _finite(np.mean(values)) if values.size else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

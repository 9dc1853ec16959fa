"""What the displacement probe reports: pure functions from per-pair values, now and at step 0, to flat metrics.

Values are aggregated over pairs only here. `None` stands for what is undefined (JSON null), never NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alphapo_cli.logprobs import AnswerLogProbs
from alphapo_cli.objective.comparison import Moment
from alphapo_cli.objective.preference import Objective

QUANTILES = (10, 50, 90)
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class ProbeValues:
    """Per-pair values of P probe pairs, float64 arrays."""

    sums: np.ndarray  # [2, P] summed log-probs, chosen first
    lengths: np.ndarray  # [2, P] completion tokens
    scores: np.ndarray  # [2, P] the objective's score
    rewards: np.ndarray  # [2, P] beta h(s)
    gradients: np.ndarray  # [2, P] d loss / d score
    entropy: np.ndarray  # [P] mean over the chosen completion's tokens, nats
    kl: np.ndarray  # [P] mean over the chosen completion's tokens of KL(now || step 0), nats


@np.errstate(invalid="ignore")  # what infinities make undefined becomes null, not a warning
def metrics(now: ProbeValues, start: ProbeValues) -> dict[str, float | None]:
    """The probe's row of metrics.jsonl.

    Displacement is in nats per token (sum difference over the number of completion tokens), `_sum` in nats per answer.
    """
    row: dict[str, float | None] = {}
    change = now.sums - start.sums  # [2, P]
    for i, side in enumerate(SIDES):
        _spread(row, f"displacement/{side}", change[i] / now.lengths[i])
        _spread(row, f"displacement/{side}_sum", change[i], quantiles=False)
        _spread(row, f"logps/{side}", now.sums[i] / now.lengths[i])
        _spread(row, f"logps/{side}_sum", now.sums[i], quantiles=False)
        _spread(row, f"rewards/{side}", now.rewards[i])
        _spread(row, f"gradient_weight/{side}", now.gradients[i])
    down = change < 0
    row["displacement/share_chosen_down"] = _mean(down[0])
    for name, chosen_down, rejected_down in (
        ("up_up", False, False),
        ("up_down", False, True),
        ("down_up", True, False),
        ("down_down", True, True),
    ):
        row[f"displacement/quadrant/{name}"] = _mean((down[0] == chosen_down) & (down[1] == rejected_down))
    margins = now.rewards[0] - now.rewards[1]
    growth = margins.mean() - (start.rewards[0] - start.rewards[1]).mean()
    from_chosen = now.rewards[0].mean() - start.rewards[0].mean()
    row["displacement/margin_from_chosen"] = _finite(from_chosen / growth) if growth > 0 else None
    _spread(row, "rewards/margins", margins)
    row["rewards/accuracies"] = _mean(margins > 0)
    order, before = now.sums[0] > now.sums[1], start.sums[0] > start.sums[1]
    means = now.sums / now.lengths
    row["ranking/accuracy"] = _mean(order)
    row["ranking/accuracy_length_normalised"] = _mean(means[0] > means[1])
    row["ranking/flipped"] = _mean(order != before)
    row["kl/reference"] = _mean(now.kl)
    row["entropy/chosen"] = _mean(now.entropy)
    return row


def per_pair(now: ProbeValues, start: ProbeValues, step: int) -> list[dict[str, float | int | None]]:
    """Rows of probe.jsonl, one a pair: the values behind the means."""
    rows: list[dict[str, float | int | None]] = []
    for p in range(now.sums.shape[1]):
        row: dict[str, float | int | None] = {"step": step, "pair": p}
        for i, side in enumerate(SIDES):
            row[f"logps/{side}_sum"] = _finite(now.sums[i, p])
            row[f"tokens/{side}"] = int(now.lengths[i, p])
            row[f"displacement/{side}"] = _finite((now.sums[i, p] - start.sums[i, p]) / now.lengths[i, p])
            row[f"rewards/{side}"] = _finite(now.rewards[i, p])
            row[f"gradient_weight/{side}"] = _finite(now.gradients[i, p])
        rows.append(row)
    return rows


def objective_values(
    objective: Objective, answers: AnswerLogProbs, moment: Moment
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, rewards, d loss / d score), each [2, P], of P pairs' answers."""
    scores = objective.scores(answers)
    rewards = objective.at(moment).rewards(scores)
    gradients = objective.score_gradients(scores, answers, moment)
    return scores.double().numpy(), rewards.double().numpy(), gradients.double().numpy()


def _spread(row: dict[str, float | None], key: str, values: np.ndarray, *, quantiles: bool = True) -> None:
    row[key] = _mean(values)
    for q in QUANTILES if quantiles else ():
        row[f"{key}/p{q}"] = _finite(np.percentile(values, q)) if values.size else None


def _mean(values: np.ndarray) -> float | None:
    return _finite(np.mean(values)) if values.size else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""Margins: what is subtracted from r_w - r_l beside gamma; `ObjectiveInputs` to a number or [B], in reward units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.modeling.logprobs import share_above
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.part import register

SCORES = ("score_chosen", "score_rejected")


@register("margin", pointwise=True)
def none(c: ObjectiveInputs) -> Tensor | float:
    """No margin beside gamma."""
    return 0.0


@register("margin", columns=lambda column, scale: (column,))
def column(c: ObjectiveInputs, *, column: str = "offset", scale: float = 1.0) -> Tensor:
    """A column of the data, times `scale`."""
    return scale * c.column(column)


@register("margin")
def length(c: ObjectiveInputs, *, alpha: float = 0.05) -> Tensor:
    """R-DPO (2403.19159): with it the loss is -log sigmoid(beta D + alpha (n_w - n_l)).

    This sign follows from a reward minus alpha times the length, and weakens pairs whose chosen side is longer. Several
    public codes have the other sign: a negative alpha.

    Returns:
        -alpha (n_w - n_l), [B].
    """
    n = c.log_probs.lengths
    return -alpha * (n[0] - n[1])


@register("margin")
def chosen_drop(c: ObjectiveInputs, *, weight: float = 50.0) -> Tensor:
    """DPOP (2402.13228): penalises a chosen side that falls below the reference; weight = 0 is none.

    If the policy is its reference, rounding alone decides which branch an answer is on; there the slope is the mean of
    the two branches', as at a tie of torch.maximum. The value is the published one everywhere.

    Returns:
        weight max(0, -r_w), [B].
    """
    drop = -c.rewards[0]
    rounding = c.rounding if isinstance(c.rounding, float) else c.rounding[0]
    slope: Tensor = share_above(drop.detach(), rounding)
    return weight * (torch.relu(drop).detach() + slope * (drop - drop.detach()))


@register("margin")
def shift(c: ObjectiveInputs, *, factor: float = 0.95) -> Tensor:
    """DPO-Shift (2502.07599): (factor - 1) r_l, so that m = r_w - factor r_l; factor = 1 is none."""
    return (factor - 1) * c.rewards[1]


def _gap_within_one(columns: dict[str, Tensor], **_: Any) -> tuple[Tensor, str]:
    gap = columns[SCORES[0]] - columns[SCORES[1]]
    return (gap < 0) | (gap > 1), "score_chosen - score_rejected must be between 0 and 1"


@register("margin", columns=SCORES, rule=_gap_within_one)
def scaled_rejected(c: ObjectiveInputs) -> Tensor:
    """MaPPO (2507.21183): m = r_w - (score_w - score_l) r_l, scores in [0, 1]; a gap of 1 is none."""
    return (c.column(SCORES[0]) - c.column(SCORES[1]) - 1) * c.rewards[1]


def _positive_gap(columns: dict[str, Tensor], *, ratio: bool, **_: Any) -> tuple[Tensor, str]:
    chosen, rejected = columns[SCORES[0]], columns[SCORES[1]]
    if ratio:
        return (chosen <= 0) | (rejected <= 0), "score_chosen and score_rejected must be above 0"
    return chosen <= rejected, "score_chosen must be above score_rejected"


@register("margin", columns=SCORES, rule=_positive_gap)
def score_gap(c: ObjectiveInputs, *, alpha: float = 1.0, ratio: bool = False) -> Tensor:
    """ODPO (2402.10571): alpha log(score_w - score_l), or with `ratio` alpha log(score_w/score_l); 0 is none."""
    chosen, rejected = c.column(SCORES[0]), c.column(SCORES[1])
    return alpha * (torch.log(chosen) - torch.log(rejected) if ratio else torch.log(chosen - rejected))


@register("margin", columns=lambda column, weight: (f"{column}_chosen", f"{column}_rejected"))
def other_reward(c: ObjectiveInputs, *, column: str = "other_reward", weight: float = 0.5) -> Tensor:
    """MODPO (2310.03708): m = [r_w - r_l - weight (q_w - q_l)]/(1 - weight), q another objective's reward.

    q is read from <column>_chosen and <column>_rejected; of several objectives, their weighted sum over their total
    weight. weight = 0 is none.

    Returns:
        (r_w - r_l) - m, [B].

    Raises:
        ConfigError: weight is not at least 0 and below 1.
    """
    if not 0 <= weight < 1:
        raise ConfigError(f"objective.margin.weight={weight}: must be at least 0 and below 1")
    q = c.column(f"{column}_chosen") - c.column(f"{column}_rejected")
    gap = c.rewards[0] - c.rewards[1]
    return gap - (gap - weight * q) / (1 - weight)


@register("margin", needs_reference=True, needs_kl=True)
def sequence_kl(c: ObjectiveInputs, *, alpha: float = 0.5, stop: bool = True) -> Tensor:
    """TDPO (2404.11999) as its authors' code has it: TDPO2, or TDPO1 with stop = False and alpha = 1.

    `stop` passes no gradient through K_w. alpha = 0 is none.

    Returns:
        beta alpha (K_l - K_w), [B], K the sum over an answer of KL(reference || policy).
    """
    chosen, rejected = c.log_probs.sequence_kl()[:2]
    difference: Tensor = rejected - (chosen.detach() if stop else chosen)
    return c.beta * alpha * difference

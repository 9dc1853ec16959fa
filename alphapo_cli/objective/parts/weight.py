"""Weights: a factor on a pair's preference term, from a `ObjectiveInputs` to a number or [B]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.part import register


@register("weight", pointwise=True)
def none(c: ObjectiveInputs) -> Tensor | float:
    """Every pair counts the same."""
    return 1.0


def _not_negative(columns: dict[str, Tensor], *, column: str, **_: Any) -> tuple[Tensor, str]:
    return columns[column] < 0, f"{column} must be at least 0"


@register("weight", columns=lambda column: (column,), rule=_not_negative, pointwise=True)
def column(c: ObjectiveInputs, *, column: str = "weight") -> Tensor:
    """A column of the data."""
    return c.column(column)


@register("weight", columns=lambda column, alpha: (column,))
def similarity(c: ObjectiveInputs, *, column: str = "semantic_distance", alpha: float = 1.0) -> Tensor:
    """e^{-alpha d}, d a distance of prompt and chosen answer in meaning: Sem-DPO (2507.20133); alpha = 0 is none."""
    return torch.exp(-alpha * c.column(column))


@register("weight", needs_statistics=True)
def on_policy(c: ObjectiveInputs, *, clamp: bool = True) -> Tensor:
    """exp(mean_t[log p_t - log sum_v p(v)^2]) of both answers multiplied, without gradient: WPO (2406.11827).

    Pairs that the policy would write itself count more. The authors keep the product at most 1 (`clamp`), TRL does not.
    """
    answers = c.given
    if answers.log_p2 is None:
        raise UsageError(
            "the weight 'on_policy' reads the model's whole next-token distribution, and only sums were given"
        )
    likely = (answers.sums / answers.lengths - answers.log_p2).sum(0).detach()
    return torch.exp(likely.clamp(max=0.0) if clamp else likely)


@register("weight", columns=("score_chosen", "score_rejected"))
def omni(c: ObjectiveInputs, *, eta: float = 0.7, focus: float = 3.0, tau: float = 1.0) -> Tensor:
    """sigmoid(eta (score_w - score_l)) (1 - sigmoid(beta (a_w - a_l) - tau))^focus: Omni-DPO (2506.10054).

    Quality times what is left to learn, a the mean log-prob. It has a gradient, as in the authors' code.
    """
    a = c.given.sums / c.given.lengths
    quality = torch.sigmoid(eta * (c.column("score_chosen") - c.column("score_rejected")))
    return quality * torch.exp(focus * torch.nn.functional.logsigmoid(tau - c.beta * (a[0] - a[1])))

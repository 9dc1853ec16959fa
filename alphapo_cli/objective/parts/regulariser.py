"""Regularisers: a term of a pair's loss beside preference term and NLL; `ObjectiveInputs` to [B] or a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alphapo_cli.modeling.logprobs import share_above
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.part import register


@register("regulariser", pointwise=True)
def none(c: ObjectiveInputs) -> Tensor | float:
    """No regulariser."""
    return 0.0


@register("regulariser", sides=3)
def gold(c: ObjectiveInputs, *, weight: float = 1.0) -> Tensor:
    """Triple PO (2405.16681): weight x NLL per token of the third, gold answer; weight = 0 is none."""
    answers = c.log_probs
    return -weight * answers.sums[2] / answers.lengths[2]


@register("regulariser", needs_reference=True, columns=("score_chosen",))
def good_chosen(c: ObjectiveInputs, *, weight: float = 1e-3, threshold: float = 3.2) -> Tensor:
    """Omni-DPO (2506.10054): NLL of chosen answers that score at least `threshold` and lie below the reference.

    The reference is what the NLL compares with, whatever the score does. An answer whose log-ratio is within rounding
    of 0 lies neither below nor above it and counts half.

    Returns:
        weight x NLL per token of such answers, 0 for the others, [B] nats.
    """
    answers = c.log_probs
    bound = math.sqrt(2) * answers.of_branches().rounding()[0]  # of two independent sums
    below = share_above(-answers.log_ratio()[0].detach(), bound)
    good = c.column("score_chosen") >= threshold
    return -weight * torch.where(good, below * (answers.sums[0] / answers.lengths[0]), 0.0)

"""Links with a state across optimizer steps: KTO's divergence, BCO's mean reward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.objective.inputs import ObjectiveInputs, PartState
from alphapo_cli.objective.numerics import SIDES
from alphapo_cli.objective.part import StatefulPart, register


def _by_row(c: ObjectiveInputs, values: Tensor) -> Tensor:
    """Transpose [K, B] to [B, K], NaN for an absent answer."""
    present = [c.present(side) for side in range(len(values))]
    return torch.stack([v if p is None else v.where(p, torch.nan) for v, p in zip(values, present, strict=True)], 1)


def _divergence_initial(*, kl: float, **_: Any) -> dict[str, float | Tensor]:
    return {"kl": kl}


def _divergence_update(state: PartState, values: Tensor, **_: Any) -> PartState:
    return {"kl": values.mean().clamp(min=0)}


@register(
    "link", reads_margin=False, limits=SIDES, pointwise=True, sides=3, mismatched=True,
    stateful=StatefulPart(_divergence_initial, lambda c, **_: c.unscaled[2:3].T, _divergence_update),
)  # fmt: skip
def kto_mismatched(c: ObjectiveInputs, *, desirable: float = 1.0, undesirable: float = 1.0, kl: float = 0.0) -> Tensor:
    """KTO (2402.01306, eq. 7), each answer alone; z is the step's mean h of answers to other prompts, at least 0.

    z has no gradient; it is `kl` before the first step.

    Returns:
        w_d (1 - sigmoid(r_w - beta z)) + w_u (1 - sigmoid(beta z - r_l)), [B].
    """
    z = c.beta * c.state["kl"].to(c.rewards)
    return c.each(desirable * torch.sigmoid(z - c.rewards[0]), undesirable * torch.sigmoid(c.rewards[1] - z))


def _kl_initial(*, kl: float, **_: Any) -> dict[str, float | Tensor]:
    return {"kl_chosen": kl, "kl_rejected": kl}


def _kl_update(state: PartState, values: Tensor, **_: Any) -> PartState:
    chosen, rejected = values.nanmean(0).nan_to_num(0.0).clamp(min=0)  # a half without answers has no divergence
    return {"kl_chosen": chosen, "kl_rejected": rejected}


@register(
    "link",
    reads_margin=False,
    limits=SIDES,
    pointwise=True,
    stateful=StatefulPart(_kl_initial, lambda c, **_: _by_row(c, c.unscaled), _kl_update),
)
def kto_pair(c: ObjectiveInputs, *, desirable: float = 1.0, undesirable: float = 1.0, kl: float = 0.0) -> Tensor:
    """KTO (2402.01306) on pairs: each half of a step is measured against the other half.

    z_l and z_w are the step's mean h of the rejected and of the chosen half, at least 0. Before the first step both are
    `kl`. Where a label may be wrong, an answer is measured against the same half under either label.

    Returns:
        w_d (1 - sigmoid(r_w - beta z_l)) + w_u (1 - sigmoid(beta z_w - r_l)), [B].
    """
    names = ("kl_chosen", "kl_rejected") if c.flipped else ("kl_rejected", "kl_chosen")
    z_up, z_down = (c.beta * c.state[name].to(c.rewards) for name in names)
    return c.each(desirable * torch.sigmoid(z_up - c.rewards[0]), undesirable * torch.sigmoid(c.rewards[1] - z_down))


def _shift_initial(*, shift: float) -> dict[str, float | Tensor]:
    return {"shift": shift, "seen": 0.0}


def _shift_update(state: PartState, values: Tensor, **_: Any) -> PartState:
    rewards = values[~values.isnan()]
    seen = state["seen"] + rewards.numel()
    return {"shift": (state["shift"] * state["seen"] + rewards.sum()) / seen, "seen": seen}


@register(
    "link",
    reads_margin=False,
    pointwise=True,
    stateful=StatefulPart(_shift_initial, lambda c, **_: _by_row(c, c.rewards), _shift_update),
)
def bco(c: ObjectiveInputs, *, shift: float = 0.0) -> Tensor:
    """BCO (2404.04656): binary cross-entropy of each answer, d the mean of all rewards so far.

    Before the first step d is `shift`.

    Returns:
        -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)), [B].
    """
    d = c.state["shift"].to(c.rewards)
    return c.each(-F.logsigmoid(c.rewards[0] - d), -F.logsigmoid(d - c.rewards[1]))

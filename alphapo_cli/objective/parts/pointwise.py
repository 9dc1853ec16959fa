"""Links that read the two rewards one by one instead of their difference, so that constants of a score matter.

They do not read gamma or a margin part, which are subtracted from a difference. Those registered as pointwise are a sum
of a term per answer (`ObjectiveInputs.each`), and so take unpaired rows. Each gives the loss of a pair, [B].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.numerics import SIDES, square
from alphapo_cli.objective.part import register


@register("link", reads_margin=False, limits=SIDES, pointwise=True)
def kto(c: ObjectiveInputs, *, desirable: float = 1.0, undesirable: float = 1.0, kl: float = 0.0) -> Tensor:
    """KTO (2402.01306) on both answers of a pair, with the constant z = `kl`, in nats.

    Returns:
        w_d (1 - sigmoid(r_w - beta z)) + w_u (1 - sigmoid(beta z - r_l)), [B].
    """
    z = c.beta * kl
    return c.each(desirable * torch.sigmoid(z - c.rewards[0]), undesirable * torch.sigmoid(c.rewards[1] - z))


@register("link", reads_margin=False, pointwise=True)
def bce(c: ObjectiveInputs, *, shift: float = 0.0) -> Tensor:
    """Binary cross-entropy of each answer: BCO (2404.04656) with the shift d held constant.

    On log-odds with d = 0 it is the alignment term of ASFT (2409.10571), there -log p_w - log(1 - p_l).

    Returns:
        -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)), [B].
    """
    return c.each(-F.logsigmoid(c.rewards[0] - shift), -F.logsigmoid(shift - c.rewards[1]))


@register("link", reads_margin=False, pointwise=True)
def nca(c: ObjectiveInputs) -> Tensor:
    """NCA (2402.05369) on a pair: -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l)."""
    r_w, r_l = c.rewards[0], c.rewards[1]
    return c.each(-F.logsigmoid(r_w) - 0.5 * F.logsigmoid(-r_w), -0.5 * F.logsigmoid(-r_l))


@register("link", reads_margin=False, pointwise=True)
def apo_zero(c: ObjectiveInputs) -> Tensor:
    """APO-zero (2408.06266, eq. 7): 1 - sigmoid(r_w) + sigmoid(r_l), chosen up, rejected down."""
    return c.each(torch.sigmoid(-c.rewards[0]), torch.sigmoid(c.rewards[1]))


@register("link")
def apo_down(c: ObjectiveInputs) -> Tensor:
    """APO-down (2408.06266, eq. 8): sigmoid(r_w) + 1 - sigmoid(m), both down, the rejected more."""
    return torch.sigmoid(c.rewards[0]) + torch.sigmoid(-c.margin)


def _share(columns: dict[str, Tensor], **_: Any) -> tuple[Tensor, str]:
    p = columns["win_probability"]
    return (p < 0) | (p > 1), "must be between 0 and 1"


@register("link", reads_margin=False, pointwise=True)
def sppo(c: ObjectiveInputs) -> Tensor:
    """SPPO (2405.00675) with hard labels; beta stands for the paper's 1/eta.

    The authors' code halves the sum; TRL's does not.

    Returns:
        (h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2, h = r/beta, [B].
    """
    h = c.unscaled
    return c.each(square(h[0] - 0.5 / c.beta), square(h[1] + 0.5 / c.beta))


@register("link", reads_margin=False, columns=("win_probability",), rule=_share, pointwise=True)
def sppo_soft(c: ObjectiveInputs) -> Tensor:
    """As `sppo`, towards (P - 1/2)/beta, P = win_probability for the chosen and 1 - P for the rejected answer."""
    h, target = c.unscaled, (c.column("win_probability") - 0.5) / c.beta
    return c.each(square(h[0] - target), square(h[1] + target))


@register("link", limits={"weight": {"ge": 0}})
def calibrated(c: ObjectiveInputs, *, weight: float = 0.5) -> Tensor:
    """Cal-DPO (2412.14516): the preference term has no beta of its own. The default weight is that of its authors' code.

    Returns:
        -log sigmoid(m/beta) + weight [(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2], h = r/beta, [B].
    """
    pulled: Tensor = sppo(c)
    return -F.logsigmoid(c.margin / c.beta) + weight * pulled

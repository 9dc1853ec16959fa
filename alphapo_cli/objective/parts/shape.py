"""Shapes: h(s), elementwise, increasing, with h(0) = 0. Any shape of tensor in, the same out.

h'(0) = 1 but for the two divergences whose published form has another slope there (`js` 1/2, `chi` 2).

One primitive serves both published conventions of the power shape; see `power`. It is not computed as exp(s)**(-alpha),
which loses the sign of small margins in bf16 and is infinite for summed log-probs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.numerics import box_cox
from alphapo_cli.objective.part import ScoreKind, register


@register("shape")
def identity(s: Tensor, kind: ScoreKind) -> Tensor:
    """The logarithm itself, h(s) = s: SimPO, DPO, IPO, CPO."""
    return s


@register("shape")
def power(s: Tensor, kind: ScoreKind, *, alpha: float = 0.25, convention: str = "auto") -> Tensor:
    """The power of the probability (or ratio) in place of its logarithm; alpha = 0 is the identity, bitwise.

    Args:
        s: scores, any shape.
        kind: what they are the logarithm of.
        alpha: the power.
        convention: `paper` (AlphaPO, 2501.03884, eq. 7): h(s) = (1 - e^{-alpha s})/alpha = BC(s; -alpha), made for
            log-probs, s <= 0. `ratio`: h(s) = (e^{alpha s} - 1)/alpha = BC(s; alpha), made for log-ratios; with alpha in
            (-1, 0) it is the alpha divergence of f-DPO (2309.16240), whose alpha is the negative of this one. `auto`:
            the one made for the score.

    Returns:
        h(s), of the shape and dtype of `s`.

    Raises:
        ConfigError: alpha is not finite, or there is no such convention.
    """
    if not math.isfinite(alpha):
        raise ConfigError(f"objective.shape.alpha={alpha}: must be a finite number")
    signs = {"paper": -1.0, "ratio": 1.0, "auto": 1.0 if kind == "log_ratio" else -1.0}
    if convention not in signs:
        raise ConfigError(f"objective.shape.convention={convention}: choose auto, paper or ratio")
    return box_cox(s, signs[convention] * alpha)


@register("shape")
def js(s: Tensor, kind: ScoreKind) -> Tensor:
    """f-DPO with Jensen-Shannon divergence (2309.16240): h = log(2 u/(1 + u)) of the ratio u = e^s; at most log 2."""
    return F.logsigmoid(s) + math.log(2)


@register("shape")
def chi(s: Tensor, kind: ScoreKind) -> Tensor:
    """Chi-PO (2407.13399), chi-squared and KL divergence together: h = s + e^s - 1; e^s is a straight line from 30."""
    return s + box_cox(s, 1.0)


@register("shape")
def tanh(s: Tensor, kind: ScoreKind, *, scale: float = 5.0) -> Tensor:
    """A bounded baseline that saturates on both sides: scale times the hyperbolic tangent of s/scale."""
    _positive("scale", scale)
    return scale * torch.tanh(s / scale)


@register("shape")
def clipped(s: Tensor, kind: ScoreKind, *, low: float = -5.0, high: float = 5.0) -> Tensor:
    """Bounded baseline: s clamped to [low, high], without gradient outside; low <= 0 <= high."""
    if not low <= 0 <= high:
        raise ConfigError(f"objective.shape.low={low}, high={high}: low must be at most 0 and high at least 0")
    return s.clamp(low, high)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"objective.shape.{name}={value}: must be above 0")

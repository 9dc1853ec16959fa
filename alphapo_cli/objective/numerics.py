"""Numerically safe functions that several kinds of parts use."""

from __future__ import annotations

import torch
from torch import Tensor

# |x| from which `square` continues as a straight line. An ordinary log-ratio gap stays far below; the limit keeps the
# product of this slope and of a power shape's (1.1e13) small enough to be squared in float32.
SQUARED_LINEAR_FROM = 1e5


def square(x: Tensor, linear_from: float = SQUARED_LINEAR_FROM) -> Tensor:
    """Square x, with the tangent beyond |x| = `linear_from`."""
    inner = x.clamp(-linear_from, linear_from)
    return inner * (2 * x - inner)


# |k x| from which box_cox continues as a straight line. 80 gave an infinite loss in float32 and 60 an infinite squared
# gradient norm over the supported range (scores to 1e4, |k| <= 4, beta <= 100); at 30 the slope stays below 1.1e13.
LINEAR_FROM = 30.0


# |k| below which the power shape equals the identity even in float64, for |x| up to 1e4; k x would leave float32's
# range there.
IDENTITY_BELOW = 1e-20


def box_cox(x: Tensor, k: float) -> Tensor:
    """The Box-Cox function BC(x; k) = (e^{k x} - 1)/k, and x at k = 0 (Box and Cox 1964, of e^x).

    Beyond |k x| = `LINEAR_FROM` it continues along its tangent, in every dtype, so that float64 and float32 are the
    same function and neither value nor slope overflows. k = 0 is an exact branch: the same tensor comes back.

    Args:
        x: any shape, float32 or wider.
        k: exponent.

    Returns:
        Same shape and dtype as `x`.
    """
    if abs(k) < IDENTITY_BELOW:
        return x
    z = k * x
    inner = z.clamp(-LINEAR_FROM, LINEAR_FROM)
    slope = torch.exp(inner)
    # expm1 keeps small k x exact, but torch differentiates it as its value plus 1, which is 0 in float32 from z = -17
    # on. So its value is taken without its derivative, and the derivative from a term that is exactly 0.
    curve = torch.expm1(inner).detach() + (slope - slope.detach())
    # Inside, z - inner is exactly 0; outside, inner is constant and the slope e^inner.
    return (curve + slope * (z - inner)) / k


def exponential(x: Tensor) -> Tensor:
    """e^x, and from x = `LINEAR_FROM` on its tangent.

    Not 1 + BC(x; 1), which from x = -17 on is 0 in float32.

    Args:
        x: any shape, float32 or wider.

    Returns:
        Same shape and dtype as `x`.
    """
    inner = x.clamp(max=LINEAR_FROM)
    # Inside, x - inner is exactly 0; outside, inner is constant and the slope e^inner.
    return torch.exp(inner) * (1 + (x - inner))


# Limits of the weights of desirable (chosen) and undesirable (rejected) answers.
SIDES = {"desirable": {"ge": 0}, "undesirable": {"ge": 0}}

"""Student's t distribution, without scipy or numpy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_MANY = 100_000  # degrees of freedom from which t is the normal to seven digits


def two_sided_tail(t: float, freedom: int) -> float:
    """P(|T| >= |t|) for freedom = 1, 2, ..., to about 1e-14: a finite series (Abramowitz and Stegun 1964, 26.7.3-4)."""
    if math.isinf(t):
        return 0.0
    if freedom >= _MANY:
        return math.erfc(abs(t) / math.sqrt(2))
    angle = math.atan2(abs(t), math.sqrt(freedom))
    odd = freedom % 2
    # Each term is the last one times cos^2 (2k - 1) / (2k), or for odd degrees times cos^2 (2k) / (2k + 1).
    series = term = 1.0
    for k in range(1, (freedom - 2) // 2 + 1):
        term *= (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)) * math.cos(angle) ** 2
        series += term
    if not odd:
        return max(1.0 - math.sin(angle) * series, 0.0)
    rest = math.sin(angle) * math.cos(angle) * series if freedom > 1 else 0.0
    return max(1.0 - 2.0 / math.pi * (angle + rest), 0.0)


@lru_cache(maxsize=4096)
def critical_value(confidence: float, freedom: int) -> float:
    """The c with P(|T| <= c) = confidence."""
    # Newton's method: the tail is convex and the normal's critical value lies below t's, so every step leads up to it.
    c, tail = NormalDist().inv_cdf(0.5 + confidence / 2), 1.0 - confidence
    for _ in range(200):
        step = (two_sided_tail(c, freedom) - tail) / (2.0 * _density(c, freedom))
        c += step
        if step <= 1e-13 * c:
            break
    return c


def _density(t: float, freedom: int) -> float:
    """Student's density at t."""
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    return math.exp(log - (freedom + 1) / 2 * math.log1p(t * t / freedom))

"""Student's t distribution, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

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
    k = np.arange(1, (freedom - 2) // 2 + 1, dtype=np.float64)
    ratios = (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)) * math.cos(angle) ** 2
    series = 1.0 + float(np.cumprod(ratios).sum())
    if not odd:
        return max(1.0 - math.sin(angle) * series, 0.0)
    rest = math.sin(angle) * math.cos(angle) * series if freedom > 1 else 0.0
    return max(1.0 - 2.0 / math.pi * (angle + rest), 0.0)


@lru_cache(maxsize=4096)
def critical_value(confidence: float, freedom: int) -> float:
    """The c with P(|T| <= c) = confidence, by bisection of `two_sided_tail`."""
    low, high = 0.0, max(NormalDist().inv_cdf(0.5 + confidence / 2), 1.0)
    while two_sided_tail(high, freedom) > 1.0 - confidence:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if two_sided_tail(middle, freedom) > 1.0 - confidence else (low, middle)
    return high

"""Quantiles of the chi-square distribution with any degrees of freedom, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache


def lower_tail(x: float, freedom: float) -> float:
    """P(X <= x): the series of the incomplete gamma function (Abramowitz and Stegun 1964, 6.5.29)."""
    if x <= 0.0:
        return 0.0
    a, half = freedom / 2, x / 2
    term = total = 1.0
    n = 0
    # Terms grow up to n = x / 2 - a and then fall, at last faster than a geometric series.
    while term > 1e-16 * total or n < half - a:
        n += 1
        term *= half / (a + n)
        total += term
    return min(math.exp(a * math.log(half) - half - math.lgamma(a + 1) + math.log(total)), 1.0)


@lru_cache(maxsize=1024)
def quantile(share: float, freedom: float) -> float:
    """The x with P(X <= x) = share.

    Args:
        share: between 0 and 1.
        freedom: degrees of freedom, above 0.

    Returns:
        x, by bisection in its logarithm.
    """
    low, high = -200.0, math.log(freedom + 20.0 * math.sqrt(freedom) + 100.0)
    for _ in range(80):
        middle = (low + high) / 2
        if lower_tail(math.exp(middle), freedom) < share:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)

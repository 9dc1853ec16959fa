"""Spearman's rank correlation with its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, its 95 % interval, and the number of pairs of values; None where it is undefined."""

    rho: float | None
    low: float | None
    high: float | None
    pairs: int


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Correlation:
    """Correlate the ranks of two columns; equal values share their mean rank.

    The interval is Fisher's for ranks, with the variance (1 + rho^2/2)/(n - 3) of artanh rho (Bonett and Wright 2000). That
    of ranks in perfect order would have no width, however few they are: it is taken at the nearest value below, that of one
    exchange of neighbours, and reaches to the perfect order.

    Args:
        x: [n] numbers; where one of the two is not finite, the pair is left out.
        y: [n] numbers.

    Returns:
        The correlation; undefined with fewer than 4 pairs or where all values of a column are equal.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = _ranks(a[known]), _ranks(b[known])
    n = len(a)
    if n < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(None, None, None, n)
    rho = float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
    most = 1 - 12 / (n * (n**2 - 1))
    inner = min(max(rho, -most), most)
    half = _NORMAL * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + side * half) for side in (-1, 1))
    return Correlation(rho, min(low, rho), max(high, rho), n)


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, the mean of their places for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks

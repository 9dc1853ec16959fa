"""The mean of values that lie between two bounds: Wilson's score interval and the test that belongs to it.

With u = (x - low) / (high - low) in [0, 1], n values of mean m and variance v, and a mean t that is asked about,

    T(t) = |m - t| / sqrt(r t (1 - t) / n),    r = (n v + 1/2) / (n m (1 - m) + 1/2).

r compares the variance with that of a coin of the same mean, for which it is 1: n / r is the effective number of coin
flips. One row at either bound is added to both variances, so that rows which happen to agree are not taken for
certainty. The interval holds every t with T(t) below the critical value of Student's t with n + 1 degrees of freedom (n
rows and the two added); the p-value is the tail beyond T. Both follow from T, so they always agree.

An estimate that is no plain mean of rows (weighted, or from a fitted model) has a variance of its own, by bootstrap: n
times it takes the place of v, and r may exceed 1, as where rows of unequal weight count for fewer.

For wins and losses it is the interval of Wilson (1927); with an effective number of rows, that of Korn and Graubard
(1998). docs/intervals.md has its measured coverage, which percentile intervals of a bootstrap do not have where rows
are few or nearly all of them agree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphapo_cli.runtime.statistics.share import interval_ends
from alphapo_cli.runtime.statistics.student import critical_value, two_sided_tail

Array = NDArray[np.float64]


def variance_ratio(mean: Array | float, square: Array | float, n: int) -> Array:
    """The ratio r of the module's text, from the mean of u and the mean of u^2, of any shape."""
    mean, square = np.asarray(mean), np.asarray(square)
    own = n * np.maximum(square - mean**2, 0.0) + 0.5
    ratio: Array = own / (n * mean * (1.0 - mean) + 0.5)
    return np.clip(ratio, 0.0, 1.0)


def statistic(mean: Array | float, square: Array | float, n: int, at: float) -> Array:
    """T(at) from the mean of u and the mean of u^2, of any shape; `at` strictly between 0 and 1."""
    found: Array = np.abs(np.asarray(mean) - at) / np.sqrt(variance_ratio(mean, square, n) * at * (1.0 - at) / n)
    return found


def mean_interval(values: Array, confidence: float, low: float = 0.0, high: float = 1.0) -> tuple[float, float] | None:
    """The interval of the mean of `values` [n] within [low, high]; NaN are left out, None without any value.

    Args:
        values: [n] independent values.
        confidence: the share of samples whose interval holds the mean they are drawn from.
        low: least possible value.
        high: largest possible value.

    Returns:
        The ends.
    """
    known = values[~np.isnan(values)]
    n = len(known)
    if not n:
        return None
    u = (known - low) / (high - low)
    mean = float(np.mean(u))
    flips = n / float(variance_ratio(mean, float(np.mean(u**2)), n))
    ends = interval_ends(mean, flips, critical_value(confidence, n + 1))
    return low + (high - low) * ends[0], low + (high - low) * ends[1]


def estimate_interval(
    mean: float, variance: float, n: int, confidence: float, *, least: float = 0.0, heaviest: float = 1.0
) -> tuple[float, float]:
    """The interval of an estimate in [0, 1] that is no plain mean of its rows.

    Args:
        mean: the estimate.
        variance: of the estimate, as a bootstrap over its rows gives it; that of a plain mean gives `mean_interval`.
        n: rows, at least 1.
        confidence: as for `mean_interval`.
        least: the least ratio r. A fit whose penalty holds it at one value varies less in a bootstrap than it errs.
        heaviest: largest weight of a row over their mean; so heavy are the two rows that are added.

    Returns:
        The ends.
    """
    ratio = (n**2 * variance + 0.5 * heaviest**2) / (n * mean * (1.0 - mean) + 0.5)
    return interval_ends(mean, n / max(ratio, least), critical_value(confidence, n + 1))


def p_value(values: Array, at: float, low: float = 0.0, high: float = 1.0) -> float:
    """Two-sided p-value of the mean `at` for `values` [n]: below 1 - c where `mean_interval` at confidence c excludes it."""
    u = (values - low) / (high - low)
    n = len(u)
    t = float(statistic(float(np.mean(u)), float(np.mean(u**2)), n, (at - low) / (high - low)))
    return two_sided_tail(t, n + 1)

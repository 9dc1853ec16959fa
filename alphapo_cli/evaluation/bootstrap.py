"""Bootstrap of rates that are no plain mean of rows: rows are resampled with replacement, and the rate computed anew.

The replicates give the rate's variance, from which its interval follows as that of a plain win rate does
(runtime/statistics/bounded_mean.py, which also has the interval of the plain win rate, without resamples). Their
percentiles (Efron 1979) would be no interval where rows are few or nearly all of them agree: docs/intervals.md. C of the
length-controlled fit is that chosen on all rows; choosing it again would cost fifty fits per resample.
"""

from __future__ import annotations

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array
from alphapo_cli.runtime.statistics.bounded_mean import estimate_interval


def resample_counts(n: int, resamples: int, seed: int) -> Array:
    """[resamples, n] how often each of n rows is drawn."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return draws.astype(np.float64)


def interval(
    rate: float, replicates: Array, n: int, confidence: float, *, least: float = 0.0, heaviest: float = 1.0
) -> tuple[float, float] | None:
    """The interval of a rate from its bootstrap; rates in percent.

    Args:
        rate: the rate of all rows.
        replicates: [R] the rate of each resample, NaN where it defines none.
        n: rows that count.
        confidence: of the interval.
        least: the least ratio of variances, as `estimate_interval` takes it.
        heaviest: largest weight of a row over their mean.

    Returns:
        The ends; None with fewer than two replicates.
    """
    spread = deviation(replicates)
    if spread is None:
        return None
    low, high = estimate_interval(rate / 100.0, (spread / 100.0) ** 2, n, confidence, least=least, heaviest=heaviest)
    return 100.0 * low, 100.0 * high


def deviation(replicates: Array) -> float | None:
    """Standard deviation of the replicates [R], the bootstrap's standard error; None with fewer than two."""
    usable = replicates[~np.isnan(replicates)]
    return float(np.std(usable, ddof=1)) if len(usable) > 1 else None

"""Bootstrap of the length-controlled win rate: rows (instructions) are resampled with replacement, and it is fitted anew.

Percentile intervals (Efron 1979). C is that chosen on all rows; choosing it again would cost fifty fits per resample.
The interval of the plain win rate needs no resamples (runtime/statistics/bounded_mean.py).
"""

from __future__ import annotations

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array


def resample_counts(n: int, resamples: int, seed: int) -> Array:
    """[resamples, n] how often each of n rows is drawn."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return draws.astype(np.float64)


def interval(replicates: Array, confidence: float) -> tuple[float, float] | None:
    """The central `confidence` share of the replicates [R]; None if all are NaN."""
    usable = replicates[~np.isnan(replicates)]
    if not len(usable):
        return None
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(usable, [tail, 100.0 - tail])
    return float(low), float(high)


def deviation(replicates: Array) -> float | None:
    """Standard deviation of the replicates [R], the bootstrap's standard error; None with fewer than two."""
    usable = replicates[~np.isnan(replicates)]
    return float(np.std(usable, ddof=1)) if len(usable) > 1 else None

"""Bootstrap intervals: rows (instructions) are resampled with replacement, and every rate is recomputed.

Percentile intervals (Efron 1979). Both rates use the same resamples. The length-controlled fit is repeated in every
resample at the C chosen on all rows; choosing C again would cost fifty fits per resample.
"""

from __future__ import annotations

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array


def resample_counts(n: int, resamples: int, seed: int) -> Array:
    """[resamples, n] how often each of n rows is drawn."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return draws.astype(np.float64)


def mean_replicates(values: Array, counts: Array) -> Array:
    """[R] mean of `values` [n] in each resample of `counts` [R, n]; NaN rows are left out, NaN if none remains."""
    known = ~np.isnan(values)
    weight = counts[:, known].sum(axis=1)
    sums = counts[:, known] @ values[known]
    means: Array = np.where(weight > 0, sums / np.maximum(weight, 1.0), np.nan)
    return means


def interval(replicates: Array, confidence: float) -> tuple[float, float] | None:
    """The central `confidence` share of the replicates [R]; None if all are NaN."""
    usable = replicates[~np.isnan(replicates)]
    if not len(usable):
        return None
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(usable, [tail, 100.0 - tail])
    return float(low), float(high)

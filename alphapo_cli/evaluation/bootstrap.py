"""Bootstrap intervals: rows (instructions) are drawn with replacement, and every rate is computed anew.

Percentile intervals (Efron 1979). Both rates use the same draws. The length-controlled fit is repeated in every
resample at the C chosen on all rows; choosing C again would cost fifty fits a resample.
"""

from __future__ import annotations

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array


def resample_counts(n: int, resamples: int, seed: int) -> Array:
    """How often each of n rows is drawn, [resamples, n]."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return draws.astype(np.float64)


def mean_replicates(values: Array, counts: Array) -> Array:
    """Mean of `values` [n] in each resample [R]; NaN rows are left out, NaN where nothing is left."""
    known = ~np.isnan(values)
    weight = counts[:, known].sum(axis=1)
    sums = counts[:, known] @ values[known]
    means: Array = np.where(weight > 0, sums / np.maximum(weight, 1.0), np.nan)
    return means


def interval(replicates: Array, confidence: float) -> tuple[float, float] | None:
    """The central `confidence` share of the replicates, None when none is defined."""
    usable = replicates[~np.isnan(replicates)]
    if not len(usable):
        return None
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(usable, [tail, 100.0 - tail])
    return float(low), float(high)

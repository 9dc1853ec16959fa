"""The mean of paired differences in [-1, 1]: a p-value and an interval that agree.

Two tests, and the larger of their p-values. The score test of `bounded_mean` is about the mean. Random signs (Fisher
1935), under which every pattern of signs is equally likely, are exact for any number of rows where swapping the two
sides changes nothing, but they test symmetry: differences whose mean is zero and which are skewed, many small ones
against few large ones, are called different too often. Studentising the statistic, the usual remedy (Janssen 1997),
changes nothing here: the sum of squares is the same for every pattern of signs, so that the studentised statistic
orders them as the plain mean does. What helps is to allow for large differences that were not seen, which the score
test does.

With k differing rows the smallest p-value of random signs is 2 / 2^k: 0.0625 with five.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from alphapo_cli.runtime.statistics.bounded_mean import Array, mean_interval, p_value

EXACT = 14  # with at most so many non-zero differences, all 2^n patterns of signs are enumerated


@dataclass(frozen=True)
class Paired:
    """p-value of a mean difference of zero, and the interval, which excludes zero where p < 1 - confidence."""

    p_value: float
    interval: tuple[float, float]


def paired_test(d: Array, confidence: float, resamples: int, seed: int) -> Paired:
    """Test and interval of the mean of paired differences.

    Args:
        d: [n] differences in [-1, 1], n >= 1.
        confidence: of the interval.
        resamples: random patterns of signs, used with more than `EXACT` non-zero differences.
        seed: of the signs.

    Returns:
        The larger p-value of the score test and of random signs; the score test's interval, up to zero where the random
        signs do not tell the mean from it.
    """
    p = max(signs_p_value(d, resamples, seed), p_value(d, 0.0, -1.0, 1.0))
    found = mean_interval(d, confidence, -1.0, 1.0)
    assert found is not None
    if p >= 1.0 - confidence:
        found = (min(found[0], 0.0), max(found[1], 0.0))
    return Paired(p, found)


def least_p_value(differing: int) -> float:
    """The smallest p-value that so many differing rows can give, all of one sign."""
    return min(2.0 ** (1 - differing), 1.0)


def fewest(confidence: float) -> int:
    """The fewest differing rows whose p-value can be below 1 - confidence."""
    return next(n for n in range(1, 64) if least_p_value(n) < 1.0 - confidence)


def signs_p_value(d: Array, resamples: int, seed: int) -> float:
    """Two-sided p-value of the mean under random signs: exact, or (1 + hits) / (1 + resamples), which is never zero."""
    nonzero = d[d != 0.0]
    observed = abs(float(np.sum(nonzero))) * (1.0 - 1e-12)  # sums in another order must still count as equal
    if len(nonzero) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(nonzero))))
        return float(np.mean(np.abs(signs @ nonzero) >= observed))
    rng, hits, left = np.random.default_rng(seed), 0, max(resamples, 1)
    while left:
        rows = min(left, 2048)
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(nonzero)), dtype=np.int8) - 1.0
        hits += int(np.sum(np.abs(signs @ nonzero) >= observed))
        left -= rows
    return (1 + hits) / (1 + max(resamples, 1))

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

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from alphapo_cli.statistics.bounded_mean import Array, mean_interval, p_value, statistic
from alphapo_cli.statistics.student import critical_value

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
        The larger p-value, and the interval at the larger critical value, of the score test and of random signs.
    """
    sums, enumerated = signed_sums(d, resamples, seed)
    own = abs(float(np.sum(d)))
    limit = own * (1.0 - 1e-12)  # sums in another order must still count as equal
    hits = int(np.sum(sums >= limit))
    signs = hits / len(sums) if enumerated else (1 + hits) / (1 + len(sums))
    p = max(signs, p_value(d, 0.0, -1.0, 1.0))
    critical = critical_value(confidence, len(d) + 1)
    reached = _largest_allowed(sums, 1.0 - confidence, enumerated)
    if signs >= 1.0 - confidence:
        reached = max(reached, own)
    critical = max(critical, _statistics(reached, d))
    found = mean_interval(d, confidence, -1.0, 1.0, critical)
    assert found is not None
    if p >= 1.0 - confidence:  # an end may be zero but for round-off
        found = (min(found[0], 0.0), max(found[1], 0.0))
    return Paired(p, found)


def least_p_value(differing: int) -> float:
    """The smallest p-value that so many differing rows can give, all of one sign."""
    return min(2.0 ** (1 - differing), 1.0)


def fewest(confidence: float) -> int:
    """The fewest differing rows whose p-value can be below 1 - confidence."""
    return next(n for n in range(1, 64) if least_p_value(n) < 1.0 - confidence)


def signed_sums(d: Array, resamples: int, seed: int) -> tuple[Array, bool]:
    """|sum of signs times d| for all patterns of signs (and True), or for `resamples` random ones."""
    nonzero = d[d != 0.0]
    if len(nonzero) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(nonzero))))
        return np.abs(signs @ nonzero), True
    rng, made, left = np.random.default_rng(seed), [], max(resamples, 1)
    while left:
        rows = min(left, 2048)
        made.append(np.abs((2.0 * rng.integers(0, 2, size=(rows, len(nonzero)), dtype=np.int8) - 1.0) @ nonzero))
        left -= rows
    return np.concatenate(made), False


def _largest_allowed(sums: Array, level: float, enumerated: bool) -> float:
    """The sum that has to be exceeded for a p-value below `level`; the largest of all where none reaches it."""
    # p < level where so many sums, or fewer, are at least the observed one.
    most = level * len(sums) if enumerated else level * (1 + len(sums)) - 1
    hits = max(math.ceil(most - 1e-9) - 1, 0)
    ordered = np.sort(sums)[::-1]
    return float(ordered[min(hits, len(ordered) - 1)])


def _statistics(total: float, d: Array) -> float:
    """T(0) of a pattern of signs whose sum is `total`."""
    n = len(d)
    square = (float(np.sum(d**2)) / n + 1.0 + 2.0 * total / n) / 4.0  # of u = (d + 1) / 2
    return float(statistic((total / n + 1.0) / 2.0, square, n, 0.5))

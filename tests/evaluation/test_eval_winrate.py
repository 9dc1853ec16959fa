"""Win rates, lengths, bins and intervals against arithmetic done by hand."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest

from alphapo_cli.evaluation.bias import length_bins
from alphapo_cli.evaluation.bootstrap import deviation, interval, resample_counts
from alphapo_cli.evaluation.winrate import average_length, percent_interval, win_rates


def test_rates_and_counts() -> None:
    found = win_rates([1.0, 2.0, 1.5, None, 1.25, 1.5000001])
    p = [0.0, 1.0, 0.5, 0.25, 0.5000001]
    assert found.win_rate == pytest.approx(100 * sum(p) / 5, abs=1e-12)
    assert found.standard_error == pytest.approx(100 * statistics.stdev(p) / math.sqrt(5), abs=1e-12)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 2, 1, 5)
    assert found.discrete_win_rate == pytest.approx(100 * 2.5 / 5)


def test_one_row_has_no_standard_error_and_none_has_no_rate() -> None:
    assert win_rates([None, 2.0]).standard_error is None
    with pytest.raises(ValueError, match="no judgement"):
        win_rates([None])


def test_average_length_counts_code_points_and_rounds_down() -> None:
    assert average_length(["é😀", "abc", ""]) == 1


def test_bins_cover_every_judged_row_once_and_keep_ties_together() -> None:
    rng = random.Random(0)
    own = [rng.choice([10, 20, 30, 400]) for _ in range(200)]
    base = [20] * 200
    p = np.array([math.nan if i % 10 == 0 else rng.random() for i in range(200)])
    bins = length_bins(own, base, p, 5, 0.95)
    assert sum(b.n for b in bins) == 180
    for left, right in pairwise(bins):
        assert left.longest < right.shortest
    for b in bins:
        inside = [q for x, y, q in zip(own, base, p, strict=True) if b.shortest <= x - y <= b.longest and q == q]
        assert b.win_rate == pytest.approx(100 * statistics.mean(inside))
        assert b.n == len(inside)
        assert b.interval == percent_interval(np.array(inside), 0.95)


def test_bins_are_about_equal_without_ties() -> None:
    own = list(range(1000))
    assert [b.n for b in length_bins(own, [0] * 1000, np.full(1000, 0.5), 5, 0.95)] == pytest.approx([200] * 5, abs=2)


def test_two_rows_in_a_bin_are_next_to_no_evidence() -> None:
    (both,) = length_bins([5, 5], [0, 0], np.array([1.0, 1.0]), 5, 0.95)
    assert both.standard_error == 0.0
    assert both.interval is not None
    assert both.interval[0] < 40
    assert both.interval[1] == 100.0


def test_replicates_of_a_mean_have_its_standard_error_and_nulls_are_left_out() -> None:
    rng = random.Random(1)
    values = np.array([rng.random() for _ in range(600)])
    counts = resample_counts(600, 4000, 7)
    assert counts.sum(axis=1).tolist() == [600.0] * 4000
    replicates = counts @ values / 600
    error = statistics.stdev(values) / math.sqrt(600)
    # A standard deviation of 4000 draws has a standard error of 1.1 %; three of them, and that 599 is not 600.
    assert deviation(replicates) == pytest.approx(error, rel=0.04)
    assert deviation(np.array([math.nan, 1.0])) is None
    # As the plain mean's interval, but for the error of the bootstrap: 1.1 % of the half-width, three of them.
    mean = 100 * values.mean()
    found = interval(mean, np.append(100 * replicates, math.nan), 600, 0.95)
    assert found == pytest.approx(percent_interval(values, 0.95), abs=0.04 * 196 * error)
    assert found == pytest.approx((mean - 196 * error, mean + 196 * error), abs=0.3)
    assert interval(mean, np.array([math.nan]), 600, 0.95) is None


@pytest.mark.parametrize("n", [1, 20, 100])
def test_replicates_that_agree_are_no_certainty(n: int) -> None:
    """Every row won: the plain mean's interval, in plain floats, where percentiles of replicates have no width."""
    c = {1: 4.302653, 20: 2.079614, 100: 1.983731}[n]  # t(0.975) with n + 1 degrees of freedom
    low, high = interval(100.0, np.full(200, 100.0), n, 0.95) or (0.0, 0.0)
    assert low == pytest.approx(100 * n / (n + c**2), rel=1e-6)
    assert high == 100.0


def test_a_rate_of_unequal_weights_has_the_interval_of_fewer_rows() -> None:
    """With four times the variance of a plain mean, a quarter of the rows."""
    replicates = 100 * (0.5 + 0.1 * np.array([-1, 1]) / math.sqrt(2))  # of standard deviation 0.1
    low, high = interval(50.0, replicates, 100, 0.95) or (0.0, 0.0)
    c, flips = 1.983731, 100 / ((100**2 * 0.1**2 + 0.5) / (100 / 4 + 0.5))
    half = c * math.sqrt(0.25 / flips + (c / 2 / flips) ** 2) / (1 + c**2 / flips)
    assert (low, high) == pytest.approx((50 - 100 * half, 50 + 100 * half), rel=1e-6)
    assert 25 < flips < 26
    narrow = interval(50.0, np.full(2, 50.0), 100, 0.95, least=1.0) or (0.0, 0.0)
    half = c * math.sqrt(0.25 / 100 + (c / 200) ** 2) / (1 + c**2 / 100)
    assert narrow == pytest.approx((50 - 100 * half, 50 + 100 * half), rel=1e-6)  # never more certain than its rows

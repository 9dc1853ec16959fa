"""Intervals and tests of a bounded mean against closed forms, scipy and plain enumeration."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from scipy import stats

from alphapo_cli.runtime.statistics.bounded_mean import mean_interval, p_value
from alphapo_cli.runtime.statistics.paired import fewest, least_p_value, paired_test
from alphapo_cli.runtime.statistics.share import share_interval
from alphapo_cli.runtime.statistics.student import critical_value, two_sided_tail


class TestStudent:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20, 99, 804, 9999])
    def test_tails_and_critical_values_are_scipys(self, freedom):
        for t in (0.0, 0.1, 1.0, 2.0, 5.0, 20.0):
            # The series adds `freedom` / 2 terms of at most 1, each to round-off.
            assert two_sided_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-11)
        for confidence in (0.5, 0.95, 0.9999):
            assert critical_value(confidence, freedom) == pytest.approx(
                stats.t.ppf(0.5 + confidence / 2, freedom), rel=1e-9
            )

    def test_of_very_many_it_is_the_normal(self):
        assert two_sided_tail(1.96, 10**6) == pytest.approx(2 * stats.norm.sf(1.96), abs=1e-12)
        assert two_sided_tail(math.inf, 3) == 0.0


class TestInterval:
    @pytest.mark.parametrize(("wins", "n"), [(0, 20), (1, 20), (20, 20), (50, 100), (98, 100), (700, 805)])
    def test_of_wins_and_losses_it_is_wilsons(self, wins, n):
        """Scipy's, at the confidence at which the normal has t's critical value."""
        level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.975, n + 1))
        theirs = stats.binomtest(wins, n).proportion_ci(level, method="wilson")
        found = mean_interval(np.array([1.0] * wins + [0.0] * (n - wins)), 0.95)
        assert found == pytest.approx((theirs.low, theirs.high), abs=1e-9)  # the critical value is to 1e-9
        assert share_interval(wins / n, n) == pytest.approx(found, abs=1e-14)  # of which only the number is known

    def test_of_many_rows_it_is_the_normal_interval(self):
        values = np.random.default_rng(0).beta(2, 5, 4000)
        half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
        # The two rows that are added and the shift of the middle are of the order 1 / n.
        assert mean_interval(values, 0.95) == pytest.approx((values.mean() - half, values.mean() + half), abs=3e-4)

    def test_a_mirror_image_and_another_scale(self):
        values = np.random.default_rng(1).random(30) ** 3
        low, high = mean_interval(values, 0.9)
        assert mean_interval(1 - values, 0.9) == pytest.approx((1 - high, 1 - low), abs=1e-12)
        assert mean_interval(2 * values - 1, 0.9, -1.0, 1.0) == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-12)

    def test_what_agrees_is_not_certain_and_stays_within_the_bounds(self):
        for n in (1, 8, 100):
            low, high = mean_interval(np.ones(n), 0.95)
            assert high == 1.0
            assert 0 < 1 - low < 1
            low, high = mean_interval(np.full(n, 0.5), 0.95)
            assert low < 0.5 < high
        assert mean_interval(np.ones(100), 0.95)[0] > 0.95

    def test_rows_without_a_value(self):
        values = np.array([0.2, math.nan, 0.9, 0.4])
        assert mean_interval(values, 0.95) == mean_interval(values[~np.isnan(values)], 0.95)
        assert mean_interval(np.array([math.nan]), 0.95) is None

    @pytest.mark.parametrize("seed", range(20))
    def test_p_value_and_interval_agree(self, seed):
        rng = np.random.default_rng(seed)
        values = rng.choice([rng.random(25), (rng.random(25) < 0.9).astype(float)][seed % 2], 25)
        low, high = mean_interval(values, 0.95)
        assert p_value(values, low + 1e-9) > 0.05 > p_value(values, low - 1e-9)
        # An end at the bound is the mean itself, where every row is won.
        assert high == 1 or p_value(values, high - 1e-9) > 0.05 > p_value(values, high + 1e-9)

    @pytest.mark.parametrize("n", [20, 100, 805])
    @pytest.mark.parametrize("rate", [0.5, 0.9, 0.98])
    def test_coverage_of_wins_and_losses_by_the_binomial(self, n, rate):
        """All samples there are, each with its probability: no simulation."""
        held = 0.0
        for wins in range(n + 1):
            if stats.binom.pmf(wins, n, rate) > 1e-9:
                low, high = mean_interval(np.array([1.0] * wins + [0.0] * (n - wins)), 0.95)
                held += stats.binom.pmf(wins, n, rate) * (low <= rate <= high)
        assert 0.93 <= held <= 0.99


class TestPaired:
    def test_random_signs_by_enumeration(self):
        d = [0.3, -0.1, 0.25, 0.0, 0.4, 0.05, -0.02]
        seen = abs(sum(d))
        hits = [
            abs(sum(s * x for s, x in zip(signs, d, strict=True))) >= seen - 1e-12
            for signs in product((-1, 1), repeat=len(d))
        ]
        score = p_value(np.array(d), 0.0, -1.0, 1.0)
        assert paired_test(np.array(d), 0.95, 100, 0).p_value == pytest.approx(max(np.mean(hits), score), abs=1e-12)

    def test_the_score_test_in_plain_numbers(self):
        """u = (d + 1) / 2 against 1/2; the variance against a coin's, with one row at either bound in both."""
        d = [0.9, 0.2, -0.4, 0.7, 1.0, 0.1, 0.3, 0.5]
        u = [(x + 1) / 2 for x in d]
        n, mean = len(u), sum(u) / len(u)
        spread = sum((x - mean) ** 2 for x in u)
        ratio = (spread + 0.5) / (n * mean * (1 - mean) + 0.5)
        t = abs(mean - 0.5) / math.sqrt(ratio / 4 / n)
        assert p_value(np.array(d), 0.0, -1.0, 1.0) == pytest.approx(2 * stats.t.sf(t, n + 1), abs=1e-12)

    @pytest.mark.parametrize("kind", ["continuous", "wins", "one sided", "alike"])
    def test_the_interval_excludes_zero_where_the_p_value_is_small(self, kind):
        rng = np.random.default_rng(2)
        decided = set()
        for k in range(60):
            n = int(rng.integers(1, 40))
            d = {
                "continuous": rng.uniform(-1, 1, n) * 0.6 + 0.1,
                "wins": rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.6, 0.3]),
                "one sided": rng.choice([0.0, 1.0], n, p=[0.7, 0.3]),
                "alike": np.full(n, rng.choice([1.0, 0.5, 0.02])),
            }[kind]
            found = paired_test(d, 0.95, 399, k)
            assert found.interval[0] <= d.mean() <= found.interval[1]
            assert (found.interval[0] > 0 or found.interval[1] < 0) == (found.p_value < 0.05)
            decided.add(found.p_value < 0.05)
        assert decided == {True, False}

    def test_five_rows_cannot_be_told_apart_and_six_can(self):
        assert (fewest(0.95), least_p_value(5), least_p_value(6)) == (6, 0.0625, 0.03125)
        for rows in (20, 805):
            five, six = (paired_test(np.array([1.0] * k + [0.0] * (rows - k)), 0.95, 100, 0) for k in (5, 6))
            assert five.p_value >= 0.0625 > 0.05 > six.p_value
            assert five.interval[0] <= 0 < six.interval[0]

    def test_a_rare_loss_that_was_not_seen_is_allowed_for(self):
        """Ten of eleven gain 0.1 and one loses 1, so the mean is zero; in 20 rows no loss is seen in 15 %."""
        gains = np.full(20, 0.1)
        assert paired_test(gains, 0.95, 2000, 0).p_value > 0.05
        # Random signs alone would say 2 / 2^20.
        random.seed(0)
        false = [
            paired_test(np.array([random.choice([0.1] * 10 + [-1.0]) for _ in range(20)]), 0.95, 200, k).p_value < 0.05
            for k in range(200)
        ]
        # 200 at a rate of 5 % show at most 18 with 99 % probability (binomial).
        assert sum(false) <= 18

    def test_nothing_differs(self):
        found = paired_test(np.zeros(100), 0.95, 100, 0)
        assert found.p_value == 1.0
        assert found.interval[0] == pytest.approx(-found.interval[1], rel=1e-14)  # a few operations
        assert found.interval[0] < 0

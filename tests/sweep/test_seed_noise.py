"""Variances of training noise between points: limiting cases against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alphapo_cli.sweep import seed_noise
from alphapo_cli.sweep.seed_noise import Scatter, crossed, neighbours, scatter
from alphapo_cli.sweep.seeds_needed import seeds_needed

DRAWS = 40_000
# A quantile of 40,000 draws has a standard error of about 1 % of the scale here; three of them, and the grid's step.
DRAWN = 0.05


def levels(draws):
    return np.quantile(draws, [0.1, 0.5, 0.9])


def constant(values, prompts=50):
    """Runs whose prompts all have the same outcome: [K, S] means."""
    return [{s: np.full(prompts, v) for s, v in enumerate(row)} for row in values]


class TestCommon:
    def test_of_points_alike_it_is_about_their_mean(self):
        """A hundred points with 4 degrees of freedom each: a standard error of 7 %, and a little less for the largest."""
        squares = 0.01 * np.random.default_rng(1).chisquare(4, 100) / 4
        mean, freedom = Scatter(squares, np.full(100, 4.0), 0.0).common()
        assert mean == pytest.approx(0.01, rel=0.2)
        assert 300 < freedom <= 400

    def test_of_one_or_two_points_it_is_theirs_exactly(self):
        assert Scatter(np.array([0.04]), np.array([4.0]), 0.0).common() == pytest.approx((0.04, 4.0))
        assert Scatter(np.array([0.04] * 2), np.array([2.0] * 2), 0.0).common() == pytest.approx((0.04, 4.0))

    def test_a_point_far_above_the_others_hardly_counts(self):
        squares, freedom = np.array([1.0, *[0.001] * 8]), np.full(9, 2.0)
        mean, shared = Scatter(squares, freedom, 0.0).common()
        assert mean == pytest.approx(0.001, rel=0.01)
        assert shared == pytest.approx(16, rel=0.01)


class TestVariances:
    def test_of_one_point_it_is_the_scaled_inverse_chi_square(self):
        made = Scatter(np.array([0.04]), np.array([4.0]), 0.0)
        drawn = made.variances((), DRAWS, np.random.default_rng(0))[:, 0]
        assert levels(drawn) == pytest.approx(0.04 * 4 / stats.chi2.ppf([0.9, 0.5, 0.1], 4), rel=DRAWN)

    def test_a_point_far_above_the_others_has_the_upper_limit_of_its_own(self):
        squares, freedom = np.array([1.0, *[0.001] * 8]), np.full(9, 2.0)
        drawn = Scatter(squares, freedom, 0.0).variances({8}, DRAWS, np.random.default_rng(2))
        limit = 1.0 * 2 / stats.chi2.ppf(0.2, 2)
        shared = Scatter(squares, freedom, 0.0).common()[1]
        assert levels(drawn[:, 0]) == pytest.approx(limit * shared / stats.chi2.ppf([0.9, 0.5, 0.1], shared), rel=DRAWN)
        assert np.median(drawn[:, 1]) < 0.01

    @pytest.mark.parametrize(("control", "own"), [((0,), 1.5), ((3,), 1.0)])
    def test_a_controls_is_never_below_its_own(self, control, own):
        """Mean squares of 1.5 and 1: a control keeps the larger one, another point has the shared one."""
        made = Scatter(np.array([1.5, *[1.0] * 60]), np.full(61, 8.0), 0.0)
        drawn = made.variances(control, DRAWS, np.random.default_rng(3))
        allowance = 2.3 * math.log(60) / (61 * 8 / 60) ** 3
        # The others' mean is 1 but for the one above it.
        assert np.median(drawn[:, 0]) == pytest.approx(max(own, 1 + allowance), rel=0.03)
        assert np.median(drawn[:, 1]) == pytest.approx(1 + allowance, rel=0.03)

    def test_the_allowance_falls_with_seeds_and_is_of_the_noise_that_is_not_of_prompts(self):
        def median(freedom, from_prompts):
            made = Scatter(np.ones(13), np.full(13, freedom), from_prompts)
            shared = 13 * freedom
            drawn = made.variances({0}, DRAWS, np.random.default_rng(4))[:, 1]
            return (np.median(drawn) + from_prompts) / (shared / stats.chi2.ppf(0.5, shared))

        for seeds in (3, 5, 10):
            allowance = 2.3 * math.log(12) / (seeds - 1) ** 3
            freedom = (seeds - 1) * 12 / 13
            assert median(freedom, 0.0) == pytest.approx(1 + allowance, rel=0.02)
            assert median(freedom, 0.6) == pytest.approx(1 + 0.4 * allowance, rel=0.02)

    def test_what_is_due_to_prompts_is_taken_off(self):
        drawn = Scatter(np.array([0.04]), np.array([3.0]), 0.03).variances((), 1000, np.random.default_rng(3))
        whole = Scatter(np.array([0.04]), np.array([3.0]), 0.0).variances((), 1000, np.random.default_rng(3))
        assert drawn == pytest.approx(np.maximum(whole - 0.03, 0))

    def test_many_seeds_make_a_point_outlying_sooner(self):
        """Thirty seeds each: twice the others' mean square cannot be chance, so the point rests on its own."""
        made = Scatter(np.array([2.0, *[1.0] * 4]), np.full(5, 29 * 0.8), 0.0)
        drawn = made.variances({4}, DRAWS, np.random.default_rng(5))
        assert np.median(drawn[:, 0]) > 2.0


class TestOwn:
    def test_it_is_the_scaled_inverse_chi_square_whatever_the_others_are(self):
        for others in (0.001, 0.04, 1.0):
            drawn = Scatter(np.array([0.04, others, others]), np.full(3, 2.0), 0.0).own(DRAWS, np.random.default_rng(0))
            expected = 0.04 * 2 / stats.chi2.ppf([0.9, 0.5, 0.1], 2)
            assert levels(drawn[:, 0]) == pytest.approx(expected, rel=DRAWN)

    def test_a_point_with_one_seed_has_the_others_noise(self):
        drawn = Scatter(np.array([0.0, 0.04, 0.04]), np.array([0.0, 4.0, 4.0]), 0.0).own(
            DRAWS, np.random.default_rng(0)
        )
        assert levels(drawn[:, 0]) == pytest.approx(0.04 * 8 / stats.chi2.ppf([0.9, 0.5, 0.1], 8), rel=DRAWN)


class TestScatter:
    def test_mean_squares_are_variances_over_seeds(self):
        values = np.array([[0.1, 0.2, 0.4], [0.5, 0.5, 0.8], [0.3, 0.9, 0.6]])
        found = scatter(constant(values), 0.0, common_seeds=False)
        assert found.squares == pytest.approx(values.var(axis=1, ddof=1))
        assert found.freedom == pytest.approx([2, 2, 2])

    def test_what_a_seed_does_to_all_points_alike_cancels(self):
        values = np.array([[0.1, 0.2, 0.4], [0.5, 0.5, 0.8], [0.3, 0.9, 0.6]])
        found = scatter(constant(values), 0.0, common_seeds=True)
        moved = scatter(constant(values + np.array([0.0, 0.05, -0.05])), 0.0, common_seeds=True)
        assert moved.squares == pytest.approx(found.squares)
        assert found.freedom.sum() == pytest.approx(4)  # (3 - 1)(3 - 1)
        rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        assert (found.squares * found.freedom).sum() == pytest.approx((rest**2).sum())

    def test_points_with_one_run_have_no_freedom_of_their_own(self):
        found = scatter([{0: np.full(9, 0.5)}, {0: np.full(9, 0.2), 1: np.full(9, 0.4)}], 0.0, common_seeds=False)
        assert found.freedom == pytest.approx([0, 1])
        assert np.all(np.isfinite(found.variances({0}, 100, np.random.default_rng(0))))

    def test_one_run_each_says_nothing(self):
        assert scatter(constant([[0.1], [0.2]]), 0.0, common_seeds=True) is None
        assert scatter([], 0.0, common_seeds=False) is None

    def test_seeds_that_agree_exactly_are_not_taken_for_certainty(self):
        found = scatter(constant([[0.5, 0.5], [0.5, 0.5]]), 0.0, common_seeds=False)
        assert found.squares == pytest.approx([1 / (12 * 50**2)] * 2)

    def test_the_interaction_is_that_of_an_analysis_of_variance(self):
        stack = np.random.default_rng(4).random((3, 40))
        rest = stack - stack.mean(axis=0) - stack.mean(axis=1, keepdims=True) + stack.mean()
        assert crossed([stack]) == pytest.approx((rest**2).sum() / (2 * 39) / 40)
        assert crossed([stack[:1]]) == 0.0


class TestNeighbours:
    LINE = ([(k / 4, k) for k in range(5)],)

    def test_a_straight_line_has_no_noise_and_a_jagged_one_has(self):
        assert neighbours(constant([[0.1 * k] for k in range(5)]), self.LINE) == pytest.approx(0.0)
        jagged = neighbours(constant([[0.5 + 0.1 * (-1) ** k] for k in range(5)]), self.LINE)
        assert jagged == pytest.approx(0.2**2 / 1.5)  # a point is 0.2 from the mean of its neighbours

    def test_four_points_are_too_few(self):
        assert neighbours(constant([[0.1]] * 4), ([(k, k) for k in range(4)],)) is None
        assert seed_noise.LEAST_ON_A_LINE == 5


def test_seeds_needed_by_the_formula_in_plain_numbers():
    """Two points, five seeds, 10,000 prompts that all agree: training noise alone is left."""
    ours, theirs = [0.60, 0.70, 0.55, 0.65, 0.62], [0.55, 0.52, 0.60, 0.48, 0.57]
    found = seeds_needed(constant([theirs, ours], prompts=10_000), (1, 0), ())
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    size, variance = np.mean(differences), np.var(differences, ddof=1)
    n = next(
        n for n in range(3, 51)
        if (stats.t.ppf(0.975, n - 1) + stats.norm.ppf(0.8)) * math.sqrt(variance / n + 2e-8) <= size
    )  # fmt: skip
    assert (found.seeds, found.by_neighbours) == (n, False)
    assert found.deviation == pytest.approx(math.sqrt(variance / 2))
    assert seeds_needed(constant([theirs, theirs]), (1, 0), ()) is None


def test_one_seed_of_a_point_borrows_what_seeds_do_to_prompts_from_the_others():
    """Coin flips of 0.5 and 0.75 on 64 prompts: all of the error falls with the seeds, so a few would tell them apart."""
    rng = np.random.default_rng(3)

    def runs(share, seeds):
        return {s: rng.permutation((np.arange(64) < 64 * share).astype(float)) for s in range(seeds)}

    found = seeds_needed([runs(0.5, 3), runs(0.5, 3), runs(0.75, 1)], (2, 0), ())
    assert found is not None
    # One difference has a variance of 0.44 / 64 over prompts, in plain numbers; 0.25 is (2.2 + 0.84) of its errors away at
    # 1.02 seeds, but for the two rows that are added and Student's t, so three or four seeds will do.
    assert found.seeds in (3, 4)

"""Intervals of a sweep's outcomes: textbook cases, then error rates on simulated sweeps."""

from __future__ import annotations

import math
from statistics import NormalDist, stdev

import numpy as np
import pytest

from alphapo_cli.sweep import intervals

RNG = np.random.default_rng


def runs(values):
    """Points as `statistics` takes them, from an array [points, seeds, prompts]."""
    return [dict(enumerate(point)) for point in np.asarray(values, dtype=float)]


def against_first(points):
    return [(k, 0) for k in range(1, len(points))]


def half_width(estimate):
    return (estimate.high - estimate.low) / 2


# The 97.5 % quantile of 4000 draws has a standard error of about 2 % (normal tails); three of them.
DRAWN = 0.06


class TestTextbook:
    def test_one_comparison_of_many_prompts_is_the_normal_interval(self):
        values = RNG(0).random((2, 1, 400))
        (found,) = intervals.advantages(runs(values), [(1, 0)])
        difference = values[1, 0] - values[0, 0]
        assert found.value == pytest.approx(difference.mean())
        expected = NormalDist().inv_cdf(0.975) * difference.std(ddof=1) / math.sqrt(400)
        assert half_width(found) == pytest.approx(expected, rel=DRAWN)

    @pytest.mark.parametrize(("others", "critical"), [(2, 2.21), (5, 2.51), (9, 2.69)])
    def test_many_comparisons_with_one_control_are_dunnetts(self, others, critical):
        """Two-sided 5 % points of Dunnett's table (1964) for independent points of equal variance."""
        values = RNG(1).random((1 + others, 1, 600))
        found = intervals.advantages(runs(values), against_first(values))
        for estimate, theirs in zip(found, values[1:, 0], strict=True):
            error = (theirs - values[0, 0]).std(ddof=1) / math.sqrt(600)
            assert half_width(estimate) / error == pytest.approx(critical, rel=DRAWN)

    def test_seeds_alone_are_the_paired_t_interval(self):
        """Every prompt says the same, so only the five differences between runs are left: t with 4 degrees."""
        ours, theirs = (0.61, 0.58, 0.66, 0.60, 0.63), (0.50, 0.52, 0.51, 0.49, 0.56)
        values = np.repeat(np.array([theirs, ours])[:, :, None], 5000, axis=2)
        (found,) = intervals.advantages(runs(values), [(1, 0)])
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert found.value == pytest.approx(sum(differences) / 5)
        # 2.776 is the 97.5 % point of t with 4 degrees; its heavier tail makes the drawn one less certain.
        assert half_width(found) == pytest.approx(2.776 * stdev(differences) / math.sqrt(5), rel=0.1)

    def test_a_seeds_common_effect_cancels(self):
        values = RNG(2).random((3, 2, 200))
        shifted = values + np.array([0.0, 0.3])[None, :, None]
        plain = intervals.advantages(runs(values), against_first(values))
        moved = intervals.advantages(runs(shifted), against_first(values))
        assert [half_width(e) for e in moved] == pytest.approx([half_width(e) for e in plain])

    def test_more_points_make_wider_intervals(self):
        values = RNG(3).random((13, 2, 100))
        few, many = (intervals.advantages(runs(values[:n]), against_first(values[:n]))[0] for n in (2, 13))
        assert few.value == many.value
        one, thirteen = (
            half_width(intervals.advantages(runs(values[:n, :1]), against_first(values[:n]))[0]) for n in (2, 13)
        )
        assert thirteen > 1.2 * one

    def test_prompts_that_all_agree_still_leave_doubt(self):
        """Eight wins of eight is not certainty: the rule of three allows 3/8 of the rest."""
        (found,) = intervals.advantages(runs([[[0.0] * 8], [[0.5] * 8]]), [(1, 0)])
        assert found.value == 0.5
        assert 0.1 < half_width(found) < 0.5

    def test_the_mean_of_one_point(self):
        values = (RNG(4).random((1, 1, 500)) < 0.7).astype(float)
        (found,) = intervals.means(runs(values))
        assert found.value == values.mean()
        assert half_width(found) == pytest.approx(1.96 * math.sqrt(0.7 * 0.3 / 500), rel=0.08)

    def test_means_stay_shares(self):
        found = intervals.means(runs([[[1.0] * 9 + [0.0]] * 2, [[0.0] * 10, [0.4] * 10]]))
        assert all(0.0 <= e.low <= e.value <= e.high <= 1.0 for e in found)

    def test_what_cannot_be_paired(self):
        assert intervals.advantages([{0: np.ones(4)}, {1: np.ones(4)}, {}], [(1, 0), (2, 0)]) == [None, None]
        assert intervals.advantages([], []) == []
        assert intervals.means([{}, {0: np.ones(4)}])[0] is None
        with_missing = [{0: np.ones(4), 1: np.ones(4)}, {1: np.zeros(4)}, {}]
        found = intervals.advantages(with_missing, [(1, 0), (2, 0)])
        assert (found[0].value, found[1]) == (-1.0, None)

    def test_twice_the_same(self):
        values = RNG(5).random((4, 2, 50))
        pairs = against_first(values)
        assert intervals.advantages(runs(values), pairs) == intervals.advantages(runs(values), pairs)


# Standard deviations on the latent scale of the simulated sweeps, where a prompt's own draw has 1.
PROMPT, INTERACTION, SEED = 0.7, 0.4, 0.2
SWEEPS, PROMPTS = 200, 64
# 200 sweeps at a rate of 5 % show at most 18 with 99 % probability (binomial).
ALLOWED = 18


def simulated(rng, points, seeds, training, shift=0.0):
    """Wins [points, seeds, prompts] of a sweep. `training`: spread of a run; `shift`: effect on the last point."""
    latent = rng.normal(size=(1, 1, PROMPTS)) * PROMPT + rng.normal(size=(points, 1, PROMPTS)) * INTERACTION
    latent = latent + rng.normal(size=(1, seeds, 1)) * SEED
    latent = latent + rng.normal(size=(points, seeds, 1)) * np.broadcast_to(training, points)[:, None, None]
    latent = latent + rng.normal(size=(points, seeds, PROMPTS))
    latent[-1] += shift
    return (latent > 0).astype(float)


def won(shift, training):
    """The true win rate of a shifted point: a normal with all spreads added."""
    spread = math.sqrt(PROMPT**2 + INTERACTION**2 + SEED**2 + training**2 + 1)
    return NormalDist().cdf(shift / spread)


@pytest.fixture
def fewer_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 800)


@pytest.mark.usefixtures("fewer_draws")
class TestErrorRates:
    def test_one_seed_each_decides_nothing(self):
        """Thirteen models that differ by training noise alone: told apart over prompts, and undecided all the same."""
        rng, apart = RNG(15), 0
        for _ in range(20):
            found = intervals.advantages(runs(simulated(rng, 13, 1, 0.5)), against_first(range(13)))
            apart += sum(e.excludes_zero for e in found)
            assert {e.verdict for e in found} <= {intervals.UNDECIDED, intervals.NOT}
            assert {e.over for e in found} == {intervals.PROMPTS}
        assert apart > 20

    @pytest.mark.parametrize(
        ("points", "seeds", "training"),
        [
            (13, 3, 0.3),
            (4, 2, 0.6),
            (5, 3, (0.6, 0.05, 0.05, 0.05, 0.05)),  # alpha = 0 itself is the noisy one
            pytest.param(13, 3, 0.0, marks=pytest.mark.slow),
            pytest.param(13, 2, 0.3, marks=pytest.mark.slow),
            pytest.param(2, 2, 0.3, marks=pytest.mark.slow),
            pytest.param(13, 1, 0.0, marks=pytest.mark.slow),
        ],
    )
    def test_without_an_effect_the_winner_is_seldom_called_distinguishable(self, points, seeds, training):
        rng, claims = RNG(11), 0
        for _ in range(SWEEPS):
            values = simulated(rng, points, seeds, training)
            best = int(values.mean(axis=(1, 2)).argmax())
            if best:
                claims += intervals.advantages(runs(values), against_first(values))[best - 1].excludes_zero
        assert claims <= ALLOWED

    @pytest.mark.parametrize(
        ("points", "seeds", "training", "shift"),
        [(5, 3, 0.2, 0.4), pytest.param(7, 2, 0.0, 0.2, marks=pytest.mark.slow)],
    )
    def test_the_winners_interval_covers_its_true_advantage(self, points, seeds, training, shift):
        rng, misses = RNG(12), 0
        for _ in range(SWEEPS):
            values = simulated(rng, points, seeds, training, shift)
            best = int(values.mean(axis=(1, 2)).argmax())
            if best:
                found = intervals.advantages(runs(values), against_first(values))[best - 1]
                truth = won(shift, training) - 0.5 if best == points - 1 else 0.0
                misses += not found.low <= truth <= found.high
        assert misses <= ALLOWED

    def test_the_interval_of_a_mean_covers(self):
        rng, misses, made = RNG(13), 0, 0
        for _ in range(SWEEPS):
            for estimate in intervals.means(runs(simulated(rng, 4, 3, 0.3))):
                misses, made = misses + (not estimate.low <= 0.5 <= estimate.high), made + 1
        # Points of one sweep share its prompts and seeds, so this is worth about SWEEPS independent trials.
        assert misses / made <= ALLOWED / SWEEPS

    def test_a_large_effect_is_found(self):
        rng, found = RNG(14), 0
        for _ in range(50):
            values = simulated(rng, 5, 3, 0.1, shift=1.5)
            found += intervals.advantages(runs(values), against_first(values))[-1].low > 0
        assert found >= 45

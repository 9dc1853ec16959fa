"""The simulations of docs/intervals.md in short, with limits from the binomial, and the correlation of neighbours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from alphapo_cli.errors import AlphapoError
from alphapo_cli.sweep import intervals
from tests.crafted_sweep import ALPHA, craft

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage, neighbours, scores = load("coverage"), load("neighbours"), load("coverage_scores")
SWEEPS = 200
# Of 200 sweeps at a rate of 6 % at most 20 claim a difference, with 99 % probability (binomial).
CLAIMS = 20


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 2000)


@pytest.mark.usefixtures("few_draws")
class TestSweeps:
    @pytest.mark.parametrize(
        ("points", "seeds", "training", "length"),
        [(2, 1, 0.1, 0.0), (13, 1, 0.1, 0.5), pytest.param(4, 1, 0.1, 0.0, marks=pytest.mark.slow)],
    )
    def test_one_seed_claims_nothing(self, points, seeds, training, length):
        world = coverage.World(points, seeds, training, length=length)
        said = coverage.verdicts(world, np.random.default_rng(1), 40)
        assert intervals.DISTINGUISHABLE not in said
        assert intervals.UNDECIDED in said

    @pytest.mark.slow
    @pytest.mark.parametrize(("points", "seeds"), [(5, 3), (5, 5), (13, 3)])
    def test_a_noisy_control_is_not_told_from_the_best(self, points, seeds):
        world = coverage.World(points, seeds, [0.2, *[0.02] * (points - 1)])
        assert coverage.verdicts(world, np.random.default_rng(2), SWEEPS).count(intervals.DISTINGUISHABLE) <= CLAIMS

    @pytest.mark.slow
    @pytest.mark.parametrize("seeds", [3, 5])
    def test_an_alpha_that_collapses_now_and_then(self, seeds):
        """Claims are made where no collapse was drawn, and there alone: a third collapses, so in (2/3)^seeds."""
        world = coverage.World(5, seeds, 0.05, gain=0.4 / 3, drop=0.4, collapse=1 / 3)
        said = coverage.verdicts(world, np.random.default_rng(3), SWEEPS).count(intervals.DISTINGUISHABLE)
        missed = SWEEPS * (2 / 3) ** seeds
        assert said <= missed + 2.33 * missed**0.5

    @pytest.mark.slow
    @pytest.mark.parametrize(("seeds", "training", "least"), [(3, 0.02, 0.45), (5, 0.05, 0.4)])
    def test_a_peak_is_found(self, seeds, training, least):
        world = coverage.World(5, seeds, training, gain=0.1)
        found = coverage.verdicts(world, np.random.default_rng(4), SWEEPS).count(intervals.DISTINGUISHABLE)
        # Fewer by 2.33 standard errors are found with 1 % probability at the least rate.
        assert found >= SWEEPS * least - 2.33 * (SWEEPS * least * (1 - least)) ** 0.5

    @pytest.mark.slow
    def test_cells(self):
        for row in coverage.cells(np.random.default_rng(5), 600, {}):
            # 150 sweeps of five cells that share prompts and seeds: worth 150 trials at the least. At 93 % or more
            # fewer than 88 % are held with 1 % probability; above 99 % an interval says too little.
            assert 88 <= row.measured <= 99.9, row


@pytest.mark.slow
def test_rows_and_pairs_in_short():
    rng = np.random.default_rng(6)
    wins = (rng.random(805) < 0.03 + 0.4 * rng.random(805)) * rng.random(805)
    files = {"a": wins, "b": rng.permutation(wins), "c": np.clip(wins + 0.2 * rng.normal(size=805), 0, 1)}
    for row in coverage.rows(rng, 400, files):
        assert row.measured >= 93 - 2.33 * 100 * (0.93 * 0.07 / 400) ** 0.5, row
    for row in coverage.pairs(rng, 200, files):
        limit = 100 * CLAIMS / SWEEPS if "claimed" in row.nominal else None
        assert row.measured <= limit if limit else row.measured >= 88, row


class TestScores:
    """Intervals that rest on a bootstrap, of rates that are no plain mean."""

    @pytest.mark.parametrize(("n", "rate"), [(20, 0.98), (100, 0.98), (100, 0.5)])
    def test_a_weighted_score(self, n, rate):
        held = scores.weighted_score(np.random.default_rng(7), n, rate, 400, "both alike")
        # Of 400 at 93 %, with 1 % probability fewer than 359.
        assert sum(held.ours) >= 359, held.line
        if rate > 0.9:
            assert np.mean(held.percentiles) < 0.9  # which is why they are not used

    @pytest.mark.slow
    @pytest.mark.parametrize(("n", "rate"), [(20, 0.98), (100, 0.9)])
    def test_length_controlled(self, n, rate):
        held = scores.length_controlled(np.random.default_rng(8), n, rate, 60)
        # Of 60 at 93 %, with 1 % probability fewer than 51.
        assert sum(held.ours) >= 51, held.line

    @pytest.mark.slow
    def test_style_controlled(self):
        held = scores.style_controlled(np.random.default_rng(9), 100, 0.5, 60)
        assert sum(held.ours) >= 51, held.line


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("part", coverage.PARTS)
def test_whole(part):
    """Every row of docs/intervals.md that needs no real judgements, as `python benchmarks/coverage.py` prints it."""
    least = {"peak of +0.1 among 5, 3 seeds": 45, "peak of +0.1 among 5, 5 seeds": 40}
    number = coverage.PARTS.index(part)
    for row in getattr(coverage, part)(np.random.default_rng([0, number]), 1000, {}):
        # Each limit is missed with 1 % probability by a rate that is just at it.
        away = 2.33 * row.error
        if "claimed" in row.nominal and row.what.startswith("3:"):
            seeds = int(row.what.split()[1])
            # A collapse that is not drawn cannot be seen; two seeds decide nothing.
            assert row.measured <= (0 if seeds == 2 else 100 * (2 / 3) ** seeds + away), row
        elif "claimed" in row.nominal:
            assert row.measured <= 6 + away, row
        elif row.nominal == "95":
            assert 93 - away <= row.measured <= 99 + away, row
        else:
            assert row.measured >= next((v for k, v in least.items() if row.what.startswith(k)), 0) - away, row


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", scores.PARTS)
def test_whole_of_the_scores(part):
    """Every row of docs/intervals.md on fitted and weighted rates."""
    for held in scores.simulate(part, np.random.default_rng([0, scores.PARTS.index(part)]), 200):
        # Style control explains rare losses by chance: docs/intervals.md says what is reached.
        least = 90 if part == "style" else 93
        away = 2.33 * held.error
        assert least - away <= held.measured <= 99 + away, held.line


class TestNeighbours:
    """13 alphas and many seeds, so that what is measured is what was put in."""

    @staticmethod
    def drawn(length, seeds=60):
        world = coverage.World(13, seeds, 0.1, length=length)
        return neighbours.Noise(np.linspace(-1, 2, 13), world.draw(np.random.default_rng(0)))

    def test_independent_noise(self):
        noise = self.drawn(0.0)
        # A variance from 60 seeds has a standard error of 18 %, and eleven contrasts are averaged.
        assert neighbours.share(noise) == pytest.approx(1.0, abs=0.2)
        assert neighbours.correlation(noise, 0.25) == pytest.approx(0.0, abs=0.2)

    def test_noise_that_is_alike(self):
        """exp(-h^2 / 2 l^2) at l = 0.5: 0.88 at 0.25, 0.61 at 0.5; far apart nearly nothing."""
        noise = self.drawn(0.5)
        assert neighbours.correlation(noise, 0.25) == pytest.approx(0.88, abs=0.08)
        assert neighbours.correlation(noise, 0.5) == pytest.approx(0.61, abs=0.2)
        assert neighbours.share(noise) < 0.1

    def test_the_error_of_a_mean_is_the_usual_one(self):
        noise = self.drawn(0.0, seeds=8)
        value, error = neighbours.jackknife(noise, lambda one: float(one.values[0].mean()))
        means = noise.values[0].mean(axis=1)
        assert (value, error) == pytest.approx((means.mean(), means.std(ddof=1) / 8**0.5))

    def test_a_sweep_on_disk(self, tmp_path):
        def change(cell, made):
            made.win = 0.5 + 0.1 * cell.point["seed"] * (-1) ** round(2 * cell.point[ALPHA])

        path = craft(tmp_path / "sweep", f"{ALPHA}=-1,-0.5,0,0.5,1", "seed=0,1,2", prompts=60, change=change)
        said = neighbours.report(neighbours.read(path))
        assert said.startswith("5 alphas x 3 seeds, 60 prompts; s.d. of training noise ")
        assert "| 0.5 | -" in said  # neighbours differ more than alphas far apart
        assert "neighbours tell " in said
        with pytest.raises(AlphapoError, match="all complete"):
            neighbours.read(craft(tmp_path / "two", f"{ALPHA}=0,1", "seed=0,1"))
        with pytest.raises(AlphapoError, match="two or more"):
            neighbours.read(craft(tmp_path / "one", f"{ALPHA}=-1,0,1"))

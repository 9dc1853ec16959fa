"""How often the intervals hold of rates that are no plain mean of rows: length-controlled, and Arena-Hard's scores.

    python benchmarks/coverage_scores.py                  # all parts, some ten minutes on one core
    python benchmarks/coverage_scores.py --only score     # half a minute

Prints a Markdown table: the share of simulated evaluations whose 95 % interval holds the true rate, in per cent, with the
standard error of the simulation, and the share that percentiles of the same bootstrap hold. Everything drawn at random is
from a seed; docs/intervals.md has the figures. The intervals of plain win rates are in coverage.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alphapo_cli.evaluation import length_controlled as lc
from alphapo_cli.evaluation.arena_hard.scores import Battles, UnavailableError, fit_style, score, score_replicates
from alphapo_cli.evaluation.bootstrap import interval, resample_counts
from alphapo_cli.evaluation.l1_logistic import sigmoid
from alphapo_cli.runtime.statistics.bounded_mean import variance_ratio

PARTS = ("lc", "score", "style")
SIZES, RATES = (20, 100, 805), (0.5, 0.9, 0.98)
RESAMPLES = 200  # the standard deviation needs no more; the product draws 2000
Array = Any
# As in AlpacaEval's fits: logits by standard deviation of the length difference, and difficulty with its deviation.
BY_LENGTH, BY_DIFFICULTY, DIFFICULTY, LENGTH, LONGER = -1.8, 0.9, 1.5, 800.0, 200.0
# Chance of a verdict >> where the model won, and of << where it lost.
STRONG = {
    "no >> or <<": (0.0, 0.0),
    "both alike": (0.3, 0.3),
    "wins mostly >>": (0.8, 0.05),
    "losses mostly <<": (0.05, 0.8),
    "losses all <<, wins none >>": (0.0, 1.0),
}
REPEAT = 0.8  # chance that the second verdict on a prompt repeats the first
STYLE = np.array([1.5, 0.5, 0.5, 0.5])  # logits by unit of the four style differences
STYLE_MEAN, STYLE_SPREAD = np.array([0.2, 0.1, 0.0, 0.0]), np.array([0.3, 0.2, 0.2, 0.2])


@dataclass
class Held:
    """Which intervals of one scenario hold its true rate."""

    what: str
    rate: float  # true, in per cent
    ours: list[bool] = field(default_factory=list)
    percentiles: list[bool] = field(default_factory=list)
    unavailable: int = 0

    def add(self, ends: tuple[float, float] | None, replicates: Array) -> None:
        """Count one evaluation."""
        known = replicates[~np.isnan(replicates)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
        self.ours.append(ends is not None and ends[0] <= self.rate <= ends[1])
        self.percentiles.append(bool(low <= self.rate <= high))

    @property
    def measured(self) -> float:
        """Per cent of the intervals that hold."""
        return 100 * float(np.mean(self.ours))

    @property
    def error(self) -> float:
        """Its standard error, at least that of one miss."""
        n, p = len(self.ours), float(np.mean(self.ours))
        return 100 * math.sqrt(max(p * (1 - p), (n - 1) / n**2) / n)

    @property
    def line(self) -> str:
        """A row of the table."""
        note = f"no score in {self.unavailable} of {self.unavailable + len(self.ours)}" if self.unavailable else ""
        by_percentiles = 100 * float(np.mean(self.percentiles))
        return f"| {self.what} | {self.measured:.1f} ± {self.error:.1f} | {by_percentiles:.1f} | {note} |"


def root(function: Callable[[float], float]) -> float:
    """Where an increasing function is zero, between -15 and 15, by bisection."""
    low, high = -15.0, 15.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def gamed_rows(rng: np.random.Generator) -> lc.Gamed:
    """Two length-gamed references with 100 rows each, of the weight that AlpacaEval's 805 have."""
    t = np.tanh(np.concatenate([rng.normal(-1, 0.5, 100), rng.normal(1, 0.6, 100)]))
    won = (rng.random(200) < sigmoid(BY_LENGTH * t)).astype(float)
    return lc.Gamed(t, rng.normal(0, DIFFICULTY, 200), won, lc.GAMED_WEIGHT / 2 * 8.05)


def length_controlled(rng: np.random.Generator, n: int, rate: float, repeats: int) -> Held:
    """Wins and losses drawn from AlpacaEval's own model; C is cross-validated in each sample."""
    every = rng.normal(0, DIFFICULTY, 100_000)
    of_model = root(lambda b: float(sigmoid(BY_DIFFICULTY * every + b).mean()) - rate)
    gamed, counts = gamed_rows(rng), resample_counts(n, RESAMPLES, 0)
    held = Held(f"length-controlled, {n} rows, true rate {rate}", 100 * rate)
    for _ in range(repeats):
        difficulty, delta = rng.normal(0, DIFFICULTY, n), rng.normal(-LONGER, LENGTH, n)
        logits = BY_LENGTH * np.tanh(delta / LENGTH) + BY_DIFFICULTY * difficulty + of_model
        won = (rng.random(n) < sigmoid(logits)).astype(float)
        problem = lc.Problem(delta, difficulty, won, gamed)
        found = lc.fit(problem)
        replicates = lc.replicates(problem, found.c, found.coefficients, counts)
        least = float(variance_ratio(won.mean(), (won**2).mean(), n))
        held.add(interval(found.win_rate, replicates, n, 0.95, least=least), replicates)
    return held


def verdicts(rng: np.random.Generator, chance: Array, strong: tuple[float, float]) -> Battles:
    """Two verdicts a prompt, won with `chance` [n], as `battles` returns them."""
    won = rng.random(len(chance)) < chance
    again = np.where(rng.random(len(chance)) < REPEAT, won, rng.random(len(chance)) < chance)
    y = np.stack([won, again], axis=1).astype(float)
    weight = np.where(rng.random(y.shape) < np.where(y > 0, *strong), 3.0, 1.0)
    total = weight.sum(axis=1)
    return Battles(total, (weight * y).sum(axis=1) / total, y.mean(axis=1))


def weighted_score(rng: np.random.Generator, n: int, rate: float, repeats: int, kind: str) -> Held:
    """Arena-Hard's score, a weighted mean."""
    won, lost = (1 + 2 * share for share in STRONG[kind])
    chance = np.full(n, rate * lost / (rate * lost + (1 - rate) * won))
    held = Held(f"score, {n} prompts, true score {rate}, {kind}", 100 * rate)
    counts = resample_counts(n, RESAMPLES, 0)
    for _ in range(repeats):
        found = verdicts(rng, chance, STRONG[kind])
        replicates = score_replicates(found, counts)
        heaviest = float(found.weight.max() / found.weight.mean())
        held.add(interval(score(found), replicates, n, 0.95, heaviest=heaviest), replicates)
    return held


def style_controlled(rng: np.random.Generator, n: int, rate: float, repeats: int) -> Held:
    """Arena-Hard's score at equal style, v2.0, of those evaluations that have one."""
    held = Held(f"style-controlled, {n} prompts, true score {rate}", 100 * rate)
    counts = resample_counts(n, RESAMPLES, 0)
    for _ in range(repeats):
        differences = rng.normal(size=(n, 4)) * STYLE_SPREAD + STYLE_MEAN
        found = verdicts(rng, sigmoid(math.log(rate / (1 - rate)) + differences @ STYLE), (0.0, 0.0))
        try:
            fit = fit_style(found, differences, "v2.0", counts)
        except UnavailableError:
            held.unavailable += 1
            continue
        held.add(interval(fit.at_equal, fit.equal_replicates, n, 0.95), fit.equal_replicates)
    return held


def simulate(part: str, rng: np.random.Generator, repeats: int, sizes: tuple[int, ...] = SIZES) -> Iterator[Held]:
    """All scenarios of a part; `repeats` evaluations each, ten times as many of the plain score."""
    for n in sizes:
        for rate in RATES:
            if part == "lc":
                yield length_controlled(rng, n, rate, repeats)
            elif part == "score":
                for kind in STRONG:
                    yield weighted_score(rng, n, rate, 10 * repeats, kind)
            elif n >= 100:  # with fewer prompts four style differences separate wins from losses in most evaluations
                yield style_controlled(rng, n, rate, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| scenario | score interval | percentiles | |\n| --- | --- | --- | --- |")
    for number, part in enumerate(PARTS):
        if part in (given.only or PARTS):
            for held in simulate(part, np.random.default_rng([given.seed, number]), given.repeats):
                print(held.line, flush=True)


if __name__ == "__main__":
    main()

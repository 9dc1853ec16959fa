"""How often intervals hold what they are about, and how often a sweep claims a difference that is not there.

    python benchmarks/coverage.py                              # all parts, about twenty minutes on one core
    python benchmarks/coverage.py --only rows --preferences DIR   # with real judgements: annotations.json(.gz) files, or
                                                               # objects with a list `preference`, from 1 to 2

Prints a Markdown table: nominal and measured, in per cent, with the standard error of the simulation. Everything drawn
at random is from a seed; docs/intervals.md has the figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from simulated_sweeps import Cells, World, noisy

from alphapo_cli.runtime.statistics.bounded_mean import mean_interval
from alphapo_cli.runtime.statistics.paired import paired_test
from alphapo_cli.sweep import intervals

PARTS = ("rows", "pairs", "sweeps", "unequal", "power", "cells")
SIZES = (20, 100, 805)
Array = Any


@dataclass(frozen=True)
class Row:
    """One line of the table; shares in per cent."""

    what: str
    nominal: str
    measured: float
    error: float
    note: str = ""


def share(what: str, nominal: str, hits: Sequence[bool] | Array, note: str = "") -> Row:
    """The share of hits, with its standard error: at least that of one hit, which no hit does not exclude."""
    n, p = len(hits), float(np.mean(hits))
    return Row(what, nominal, 100 * p, 100 * math.sqrt(max(p * (1 - p), (n - 1) / n**2) / n), note)


def table(rows: Sequence[Row]) -> str:
    lines = ["| scenario | nominal | measured | |", "| --- | --- | --- | --- |"]
    lines += [f"| {r.what} | {r.nominal} | {r.measured:.1f} ± {r.error:.1f} | {r.note} |" for r in rows]
    return "\n".join(lines)


# Rows of one evaluation.


def covered(values: Array, truth: float) -> list[bool]:
    """Whether the interval of each sample [R, n] holds the mean that it is drawn from."""
    ends = [mean_interval(v, 0.95) for v in values]
    return [e is not None and e[0] <= truth <= e[1] for e in ends]


def binomial(n: int, rate: float) -> float:
    """The share of all samples of wins and losses whose interval holds the rate: a sum, not a simulation."""
    held = 0.0
    for wins in range(n + 1):
        chance = math.lgamma(n + 1) - math.lgamma(wins + 1) - math.lgamma(n - wins + 1)
        chance = math.exp(chance + wins * math.log(rate) + (n - wins) * math.log(1 - rate))
        if chance > 1e-9:
            held += chance * covered(np.array([[1.0] * wins + [0.0] * (n - wins)]), rate)[0]
    return held


def rows(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    for n in SIZES:
        for rate in (0.5, 0.9, 0.98):
            what = f"win rate, {n} rows, won or lost, true rate {rate}"
            yield Row(what, "95", 100 * binomial(n, rate), 0.0, "exact")
        for name, values in sorted(files.items(), key=lambda item: np.nanmean(item[1])):
            known = values[~np.isnan(values)]
            if known.std() > 0:
                drawn = rng.choice(known, (repeats, n))
                what = f"win rate, {n} rows of {name}, mean {known.mean():.3f}"
                yield share(what, "95", covered(drawn, float(known.mean())))


# Differences that are zero in the mean: value and probability.
SKEWED = {
    "nine of ten gain 0.05, one loses 0.45": ((0.05, -0.45), (0.9, 0.1)),
    "ten of eleven gain 0.1, one loses 1": ((0.1, -1.0), (10 / 11, 1 / 11)),
    "four of five gain 0.25, one loses 1": ((0.25, -1.0), (0.8, 0.2)),
    "49 of 50 gain 1/49, one loses 1": ((1 / 49, -1.0), (0.98, 0.02)),
    "half are equal, 0.1 gain 1, 0.4 lose 0.25": ((0.0, 1.0, -0.25), (0.5, 0.1, 0.4)),
}


def pairs(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    for name, (values, chances) in SKEWED.items():
        for n in (20, 50, 100, 805):
            drawn = rng.choice(values, (repeats, n), p=chances)
            false = [paired_test(d, 0.95, 400, k).p_value < 0.05 for k, d in enumerate(drawn)]
            yield share(f"compare, {n} rows, no difference in the mean: {name}", "5 claimed", false)
    found: dict[int, list[float]] = {}
    each = max(repeats // 10, 20)
    for one, other in combinations(files.values(), 2):
        d = (one - other)[~np.isnan(one - other)]
        for n in (20, 50, 100, 256, 805):
            ends = [paired_test(rng.choice(d, n), 0.95, 400, k).interval for k in range(each)]
            found.setdefault(n, []).append(float(np.mean([low <= d.mean() <= high for low, high in ends])))
    for n, rates in found.items():
        note = f"{len(rates)} pairs of {each} samples: lowest {100 * min(rates):.1f}, median {100 * median(rates):.1f}"
        yield Row(f"compare, {n} rows of real pairs, mean over pairs", "95", 100 * float(np.mean(rates)),
                  100 * math.sqrt(0.05 * 0.95 / (each * len(rates))), note)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What is said of one sweep against point 0, where no mean differs from another."""

    best: str  # the verdict on the best point, where it is above point 0
    anything: bool  # whether any point, above or below, is called distinguishable


def statements(world: World, rng: np.random.Generator, repeats: int) -> list[Said]:
    said = []
    for _ in range(repeats):
        values = world.draw(rng)
        best = int(values.mean(axis=(1, 2)).argmax())
        points = [dict(enumerate(point)) for point in values]
        found = intervals.advantages(points, [(k, 0) for k in range(1, world.points)])
        estimate = found[best - 1] if best else None
        better = estimate is not None and (estimate.low > 0 or not estimate.excludes_zero)
        said.append(
            Said(
                estimate.verdict if estimate is not None and better else intervals.NOT,
                any(e is not None and e.verdict == intervals.DISTINGUISHABLE for e in found),
            )
        )
    return said


def verdicts(world: World, rng: np.random.Generator, repeats: int) -> list[str]:
    """What is said of the best point of each sweep against point 0."""
    return [one.best for one in statements(world, rng, repeats)]


def claims(what: str, world: World, rng: np.random.Generator, repeats: int, nominal: str = "5 claimed") -> list[Row]:
    """A row of the best point upwards, and one of any point on both sides where these claims would be false."""
    said = statements(world, rng, repeats)
    undecided = 100 * sum(one.best == intervals.UNDECIDED for one in said) / repeats
    note = f"undecided {undecided:.0f}" if undecided else ""
    rows = [share(what, nominal, [one.best == intervals.DISTINGUISHABLE for one in said], note)]
    if "claimed" in nominal:
        rows.append(share(f"{what}: any point, both sides", nominal, [one.anything for one in said]))
    return rows


def collapsing(world: World, rng: np.random.Generator, repeats: int) -> list[Row]:
    """An alpha that is as good as alpha = 0 in the mean, and better where it does not collapse."""
    what = f"3: {world.seeds} seeds, a third of one alpha's fall by {world.drop}, s.d. {world.training}"
    best, anything = claims(what, world, rng, repeats)
    missed = f"none collapsed in {100 * (1 - world.collapse) ** world.seeds:.0f}"
    note = "; ".join(filter(None, (missed, best.note)))
    return [Row(best.what, best.nominal, best.measured, best.error, note), anything]


def sweeps(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    for points in (2, 4):
        yield from claims(f"1: one seed, {points} cells, s.d. 0.1", World(points, 1, 0.1), rng, repeats)
    for length in (0.25, 0.5):
        world = World(13, 1, 0.1, length=length)
        yield from claims(f"2: one seed, 13 alphas, s.d. 0.1, alike over {length} in alpha", world, rng, repeats)
    for drop, deviation in ((0.4, 0.05), (0.4, 0.02), (0.4, 0.1), (0.3, 0.05), (0.2, 0.05), (0.2, 0.02)):
        for seeds in (2, 3, 5) if (drop, deviation) in ((0.4, 0.05), (0.4, 0.02)) else (3, 5):
            yield from collapsing(World(5, seeds, deviation, gain=drop / 3, drop=drop, collapse=1 / 3), rng, repeats)
    for points in (2, 5, 13):
        for seeds in (3, 5):
            for deviation in (0.02, 0.05, 0.1):
                what = f"nothing differs, {seeds} seeds, {points} alphas, s.d. {deviation}"
                yield from claims(what, World(points, seeds, deviation), rng, repeats)


def unequal(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    """Nothing differs but the noise of one alpha, which is alpha = 0 or the last one."""
    for points in (5, 13):
        for seeds in (3, 5):
            for deviation, ratio in ((0.02, 2), (0.02, 3), (0.02, 10), (0.05, 2), (0.05, 3)):
                for at, name in ((0, "alpha = 0"), (-1, "another alpha")):
                    what = f"4: {seeds} seeds, {points} alphas, s.d. {deviation}, {name} {ratio} times as noisy"
                    yield from claims(what, World(points, seeds, noisy(points, deviation, ratio, at)), rng, repeats)
    several = {
        "alpha = 0 and another three times as noisy": World(5, 3, (0.15, 0.05, 0.05, 0.05, 0.15)),
        "s.d. from 0.02 to 0.1, alpha = 0 the noisiest": World(5, 3, (0.1, 0.07, 0.05, 0.03, 0.02)),
        "alpha = 0 twice as noisy": World(5, 10, noisy(5, 0.05, 2)),
        "half of all alphas three times as noisy": World(
            13, 5, [0.06 if k % 2 == 0 and k < 12 else 0.02 for k in range(13)]
        ),
    }
    for what, world in several.items():
        yield from claims(f"5: {world.seeds} seeds, {world.points} alphas, {what}", world, rng, repeats)
    for points in (5, 13):
        world = World(points, 2, noisy(points, 0.02, 10))
        yield from claims(f"4: 2 seeds, {points} alphas, s.d. 0.02, alpha = 0 10 times as noisy", world, rng, repeats)


def power(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    for points in (5, 13):
        for seeds, deviation in ((3, 0.02), (5, 0.05)):
            what = f"peak of +0.1 among {points}, {seeds} seeds, s.d. {deviation}"
            yield from claims(what, World(points, seeds, deviation, gain=0.1), rng, repeats, "found")


def cells(rng: np.random.Generator, repeats: int, files: dict[str, Array]) -> Iterator[Row]:
    """A cell's own interval."""
    few = max(repeats // 4, 25)
    for rate in (0.5, 0.9, 0.98):
        for seeds in (1, 2, 3, 5):
            first, others = Cells(seeds, [0.05] * 5, rate).held(rng, few)
            over = "prompts" if seeds == 1 else "prompts and seeds"
            yield share(f"cell, {seeds} seeds, over {over}, true rate {rate}", "95", first + others)
    for ratio, deviation in ((10, 0.02), (3, 0.02), (2, 0.05)):
        for seeds in (2, 3, 5):
            first, others = Cells(seeds, noisy(5, deviation, ratio)).held(rng, few)
            what = f"cell, {seeds} seeds, s.d. {deviation}"
            yield share(f"{what}, {ratio} times as noisy as the others", "95", first)
            yield share(f"{what}, beside one {ratio} times as noisy", "95", others)
    for seeds in (2, 3, 5):
        first, _ = Cells(seeds, [0.05] * 5, drop=0.4, collapse=1 / 3).held(rng, few)
        drawn = 100 * (1 - (2 / 3) ** seeds - (1 / 3) ** seeds)
        yield share(
            f"cell, {seeds} seeds, a third of its trainings fall by 0.4",
            "less",
            first,
            f"some but not all in {drawn:.0f}",
        )


def preferences(folder: Path | None) -> dict[str, Array]:
    """Shares of the win by row of the reference (805), from every file of a folder; NaN without a judgement."""
    found = {}
    for file in sorted(folder.glob("*.json*")) if folder else []:
        content = json.loads(gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes())
        if isinstance(content, list):
            content = {"preference": [row["preference"] for row in content]}
        listed = content["preference"]
        values = np.full(805, np.nan)
        at = content.get("index") or range(len(listed))
        values[list(at)] = [np.nan if x is None else x - 1 for x in listed]
        found[file.name.partition(".json")[0]] = values
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--preferences", type=Path, help="a folder of judgements")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=4000, help="of each sweep's intervals (the product: 20,000)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    intervals.DRAWS = given.draws
    files = preferences(given.preferences)
    made: list[Row] = []
    for number, part in enumerate(PARTS):
        if part in (given.only or PARTS):
            made += globals()[part](np.random.default_rng([given.seed, number]), given.repeats, files)
    print(table(made))


if __name__ == "__main__":
    main()

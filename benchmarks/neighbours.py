"""How alike the training noise of neighbouring alphas is, from a sweep with several seeds.

    python benchmarks/neighbours.py --run runs/neighbours      # trains 13 alphas x 5 seeds in the embedded world first
    python benchmarks/neighbours.py runs/neighbours            # a sweep that is there: alphas x seeds, all complete

Settings after the directory go to `alphapo sweep alpha`, in place of seed=0,1,2,3,4: a model and pairs of one's own, as in
`--run runs/hh model.path=M data=hh_rlhf data.path=F objective.shape.alpha=-0.5,0,0.25,0.5,1 seed=0,1,2`.

With one seed, the distance of a point from the line between its two neighbours is all that tells training noise from an
effect of alpha (`seed_noise.neighbours`). That is right if noise is independent from alpha to alpha. Here, with S seeds,

    g(h)  half the variance over seeds of the difference of two alphas that lie h apart, without what is due to prompts:
          the noise that is not shared at that distance (the variogram; what a seed does to all alphas alike cancels)
    1 - g(h) / g(far)   the correlation of noise at distance h; far: the mean over the upper half of the distances
    share               the variance over seeds of the distance from the neighbours' line, over what independent noise
                        of variance g(far) gives: 1 if the neighbour method is right, below 1 if it is too sure

each with a standard error from leaving out one seed after another (jackknife). All of it takes the noise of every alpha
to be as large. An alpha of which a training collapsed is not such a one and decides everything, so the figures are given
once more without these.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.errors import AlphapoError
from alphapo_cli.sweep.analysis import analyse, outcomes
from alphapo_cli.sweep.directory import SweepDirectory

Array = Any
SEEDS = ("seed=0,1,2,3,4",)


@dataclass(frozen=True)
class Noise:
    """Alphas [K], ascending, and outcomes [K, S, P]."""

    alphas: Array
    values: Array
    collapsed: tuple[float, ...] = ()  # alphas of which a training collapsed

    def steady(self) -> Noise:
        """Those alphas of which no training collapsed."""
        kept = [a not in self.collapsed for a in self.alphas]
        return Noise(self.alphas[kept], self.values[kept])

    def without(self, seed: int) -> Noise:
        return Noise(self.alphas, np.delete(self.values, seed, axis=1))


def training_variance(combined: Array) -> float:
    """Variance over seeds of a combination of alphas [S, P], less the interaction of seeds and prompts."""
    seeds, prompts = combined.shape
    rest = combined - combined.mean(axis=0) - combined.mean(axis=1, keepdims=True) + combined.mean()
    interaction = (rest**2).sum() / ((seeds - 1) * (prompts - 1)) / prompts
    return float(combined.mean(axis=1).var(ddof=1) - interaction)


def variogram(noise: Noise) -> dict[float, float]:
    """g by distance."""
    found: dict[float, list[float]] = {}
    for i in range(len(noise.alphas)):
        for j in range(i):
            distance = round(float(noise.alphas[i] - noise.alphas[j]), 6)
            found.setdefault(distance, []).append(training_variance(noise.values[i] - noise.values[j]) / 2)
    return {h: float(np.mean(found[h])) for h in sorted(found)}


def far(g: Mapping[float, float]) -> float:
    return float(np.mean([value for h, value in g.items() if h >= max(g) / 2]))


def correlation(noise: Noise, distance: float) -> float:
    g = variogram(noise)
    return 1 - g[distance] / far(g)


def share(noise: Noise) -> float:
    """Training variance by neighbours, over g(far)."""
    x, found = noise.alphas, []
    for k in range(1, len(x) - 1):
        weight = (x[k + 1] - x[k]) / (x[k + 1] - x[k - 1])
        contrast = noise.values[k] - weight * noise.values[k - 1] - (1 - weight) * noise.values[k + 1]
        found.append(training_variance(contrast) / (1 + weight**2 + (1 - weight) ** 2))
    return float(np.mean(found)) / far(variogram(noise))


def jackknife(noise: Noise, statistic: Callable[[Noise], float]) -> tuple[float, float]:
    """The statistic, and its standard error from leaving out one seed after another; NaN with two seeds."""
    seeds = noise.values.shape[1]
    if seeds < 3:
        return statistic(noise), float("nan")
    left = np.array([statistic(noise.without(s)) for s in range(seeds)])
    return statistic(noise), float(np.sqrt((seeds - 1) / seeds * ((left - left.mean()) ** 2).sum()))


def read(path: Path) -> Noise:
    """The outcomes of a sweep over alpha and seeds.

    Raises:
        AlphapoError: a cell is missing, or answered other prompts.
    """
    directory = SweepDirectory(path)
    analysis = analyse(directory)
    points = sorted((p for p in analysis.points if p.alpha is not None), key=lambda p: p.alpha or 0.0)
    if analysis.metric is None or len(points) < 3 or any(len(p.cells) < len(p.members) for p in points):
        raise AlphapoError(f"{path}: needs three alphas, all complete")
    values = [[outcomes(directory.cell(c["id"]), analysis.metric) for c in p.cells] for p in points]
    shapes = {(len(seeds), one.shape) for seeds in values for one in seeds}
    if len(shapes) != 1 or len(values[0]) < 2:
        raise AlphapoError(f"{path}: needs the same seeds, two or more, and the same prompts for every alpha")
    fell = tuple({analysis.points[one.point].alpha or 0.0 for one in analysis.collapses})
    return Noise(np.array([p.alpha for p in points]), np.array(values), fell)


def report(noise: Noise) -> str:
    alphas, seeds, prompts = noise.values.shape
    g = variogram(noise)
    lines = [f"{alphas} alphas x {seeds} seeds, {prompts} prompts; s.d. of training noise {max(far(g), 0) ** 0.5:.4f}"]
    if far(g) <= 0:
        return "\n".join([*lines, "no training noise beyond that of prompts: nothing to correlate"])
    lines += ["", "| distance in alpha | correlation of training noise |", "| --- | --- |"]
    for h in [h for h in g if h < max(g) / 2]:
        value, error = jackknife(noise, lambda one, h=h: correlation(one, h))  # type: ignore[misc]
        lines.append(f"| {h:g} | {value:+.2f} ± {error:.2f} |")
    value, error = jackknife(noise, share)
    return "\n".join([*lines, "", f"neighbours tell {value:.2f} ± {error:.2f} of the variance of training noise"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("settings", nargs="*", default=SEEDS)
    parser.add_argument("--run", action="store_true", help="run or continue the sweep first")
    given = parser.parse_args()
    if given.run:
        line = [sys.executable, "-m", "alphapo_cli", "sweep", "alpha", *given.settings, "--out", str(given.directory)]
        subprocess.run(line, check=True)
    noise = read(given.directory)
    print(report(noise))
    if noise.collapsed:
        print(
            f"\nWithout alpha = {', '.join(f'{a:g}' for a in sorted(noise.collapsed))}, where a training collapsed: ",
            end="",
        )
        print(report(noise.steady()))


if __name__ == "__main__":
    main()

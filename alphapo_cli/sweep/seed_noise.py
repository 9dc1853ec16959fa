"""Training noise: how much the mean outcome of a run changes with another seed.

Each point (a combination of swept values) has few seeds, and points need not vary alike: near the edge of a failure
trainings disagree, elsewhere they hardly do. Variances are therefore shrunk between points (Smyth 2004). With s_k^2 the
mean square of point k's runs about their expectation, on d_k degrees of freedom,

    s_k^2 | V_k ~ V_k chi^2(d_k) / d_k,    1 / V_k ~ chi^2(d_0) / (d_0 s_0^2),

so that V_k given the data is (d_0 s_0^2 + d_k s_k^2) / chi^2(d_0 + d_k): where the points' own mean squares are alike,
d_0 comes out large and all of them inform each; where they are not, each point rests on its own seeds, and the
intervals have the long tails that so few degrees of freedom bring. d_0 and s_0^2 are not fixed at an estimate, which
too few points would give, but drawn from their posterior, flat in log s_0^2 and over the values of `_PRIOR_FREEDOM`. A
point that varies far more than the others keeps its own mean square and degrees of freedom, as in Phipson et al. 2016.

The mean square of a run's mean includes the variance from its finitely many prompts. That part is in the error over
prompts too, so it is subtracted from every draw of V_k (as in generalised pivots, Weerahandi 1993).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Runs = Mapping[Hashable, Array]  # of one point: seed -> outcome of every prompt, [P]
Line = Sequence[tuple[float, int]]  # points (x, index) along which the outcome should change smoothly, x ascending
LEAST_ON_A_LINE = 5
_PRIOR_FREEDOM = (4.0, 8.0, 16.0, 32.0, 1e6)
# A point whose mean square is so many times s_0^2 is not shrunk towards it: its interval would be too narrow.
_OUTLYING = 4.0
_GRID = 61  # values of log s_0^2


@dataclass(frozen=True)
class Scatter:
    """Mean squares of the runs' means about their expectation, by point; 0 degrees of freedom with one run."""

    squares: Array  # [K]
    freedom: Array  # [K]
    from_prompts: float  # the part that is due to prompts and sampled answers

    @property
    def pooled(self) -> float:
        """The variance of a run's mean that training noise adds, if it were the same for every point."""
        mean = float(np.sum(self.squares * self.freedom) / np.sum(self.freedom))
        return max(mean - self.from_prompts, 0.0)

    def of(self, points: Sequence[int]) -> float:
        """The same of some points alone: the mean over those that have several seeds; 0 if none has."""
        found = [self.squares[k] for k in points if self.freedom[k] > 0]
        return max(float(np.mean(found)) - self.from_prompts, 0.0) if found else 0.0

    def variances(self, count: int, rng: np.random.Generator) -> Array:
        """Draws [count, K] of the variance that training noise adds to a run's mean."""
        freedom, scale = _posterior(self.squares, self.freedom, count, rng)  # [count]
        outlying = self.squares > _OUTLYING * scale[:, None]
        prior = np.where(outlying, 0.0, freedom[:, None])  # [count, K]
        drawn = (prior * scale[:, None] + self.squares * self.freedom) / rng.chisquare(prior + self.freedom)
        alike: Array = np.maximum(drawn - self.from_prompts, 0.0)
        return alike

    def draws(self, points: Sequence[Runs], count: int, rng: np.random.Generator) -> list[dict[Hashable, Array]]:
        """Draw the training noise of every run, [count] each, with the uncertainty of its variance."""
        deviations = np.sqrt(self.variances(count, rng))
        return [
            {s: deviations[:, k] * rng.standard_normal(count) for s in runs} for k, runs in enumerate(points)
        ]  # fmt: skip


def scatter(points: Sequence[Runs], crossed: float, *, common_seeds: bool) -> Scatter | None:
    """Estimate training noise from points with several seeds.

    Args:
        points: outcomes of each point: seed -> [P].
        crossed: the interaction of seed and prompt, as `crossed` returns it.
        common_seeds: whether the effect of a seed on all points alike is left out, because it cancels in differences.

    Returns:
        The estimate, or None if no point has two seeds.
    """
    # With too few seeds to separate their common effect on all points, it counts as noise.
    return _from_seeds(points, crossed, common_seeds) or _from_seeds(points, crossed, False)


def crossed(stacks: Sequence[Array]) -> float:
    """Mean square of the seed-prompt interaction in stacks of [S, P], divided by P; 0 with one seed."""
    total, freedom = 0.0, 0
    for stack in stacks:
        seeds, prompts = stack.shape
        rest = stack - stack.mean(axis=0) - stack.mean(axis=1, keepdims=True) + stack.mean()
        total, freedom = total + float((rest**2).sum()), freedom + (seeds - 1) * (prompts - 1)
    return total / freedom / stacks[0].shape[1] if freedom else 0.0


def _from_seeds(points: Sequence[Runs], crossed: float, common_seeds: bool) -> Scatter | None:
    runs = [(k, s) for k, of_point in enumerate(points) for s in of_point]
    seeds = {s: i for i, s in enumerate(dict.fromkeys(s for _, s in runs))} if common_seeds else {}
    design = np.zeros((len(runs), len(points) + len(seeds)))
    for row, (k, s) in enumerate(runs):
        design[row, k] = 1
        if common_seeds:
            design[row, len(points) + seeds[s]] = 1
    if not runs:
        return None
    away = np.eye(len(runs)) - design @ np.linalg.pinv(design)  # what remains of a run's mean after the fit
    if round(float(np.trace(away)), 6) < 1:
        return None
    residuals = away @ np.array([points[k][s].mean() for k, s in runs])
    owner = np.array([k for k, _ in runs])
    # A point has its runs' share of the degrees of freedom.
    freedom = np.array([np.diag(away)[owner == k].sum() for k in range(len(points))])
    freedom[freedom < 1e-6] = 0.0
    sums = np.array([(residuals[owner == k] ** 2).sum() for k in range(len(points))])
    prompts = len(points[owner[0]][runs[0][1]])
    # Means are rounded to 1/P, which has this variance; seeds that agree exactly are not more alike than that.
    squares = np.maximum(sums / np.maximum(freedom, 1e-6), 1 / (12 * prompts**2))
    return Scatter(np.where(freedom > 0, squares, 0.0), freedom, crossed)


def _posterior(squares: Array, freedom: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws [count] of d_0 and s_0^2, from their posterior on a grid."""
    # Given both, s_k^2 / s_0^2 has the F distribution with d_k and d_0 degrees of freedom (Smyth 2004, equation 4).
    known = freedom > 0
    s, d = squares[known], freedom[known]
    scales = np.geomspace(s.min() / 30, s.max() * 30, _GRID)[:, None]  # [G, 1]
    logs = []
    for prior in _PRIOR_FREEDOM:
        ratio = d / prior * s / scales
        constant = np.array([math.lgamma((x + prior) / 2) - math.lgamma(x / 2) - math.lgamma(prior / 2) for x in d])
        density = constant + d / 2 * np.log(ratio) - (d + prior) / 2 * np.log1p(ratio)
        logs.append(density.sum(axis=1))
    table = np.array(logs)  # [D, G]
    weights = np.exp(table - table.max())
    at = rng.choice(weights.size, size=count, p=(weights / weights.sum()).ravel())
    which, place = np.divmod(at, _GRID)
    step = math.log(float(scales[1, 0] / scales[0, 0]))
    jitter = np.exp(step * (rng.random(count) - 0.5))
    return np.array(_PRIOR_FREEDOM)[which], scales[place, 0] * jitter


def neighbours(points: Sequence[Runs], lines: Sequence[Line]) -> float | None:
    """Variance of training noise from one seed each, if that of neighbouring points on a line is independent.

    A point lies between the two beside it but for noise (pseudo-residuals, Gasser, Sroka and Jennen-Steinmetz 1986).
    Neighbours share a seed and the order of data. How alike their noise is has not been measured; if it is alike, this
    is too small, so it serves to plan seeds (`seeds_needed`) and never to tell points apart.

    Args:
        points: outcomes of each point: seed -> [P].
        lines: points along which the outcome should change smoothly.

    Returns:
        The variance that training noise adds to a run's mean; None without a line of `LEAST_ON_A_LINE` points.
    """
    found = []
    for line in lines:
        known = [(x, next(iter(points[k].values()))) for x, k in line if points[k]]
        if len(known) < LEAST_ON_A_LINE:
            continue
        for (x0, left), (x, middle), (x1, right) in zip(known, known[1:], known[2:], strict=False):
            weight = (x1 - x) / (x1 - x0)
            contrast = middle - weight * left - (1 - weight) * right  # [P]
            square = float(contrast.mean()) ** 2 - float(contrast.var(ddof=1)) / len(contrast)
            found.append(square / (1 + weight**2 + (1 - weight) ** 2))
    return max(float(np.mean(found)), 0.0) if found else None

"""Training noise: how much the mean outcome of a run changes with another seed.

Points (combinations of swept values) have few seeds and need not vary alike: near the edge of a failure trainings
disagree, elsewhere they hardly do. With s_k^2 the mean square of point k's runs about their expectation, on d_k degrees
of freedom, T_k its expectation, and p the known part of it that is due to prompts,

    s_k^2 | T_k ~ T_k chi^2(d_k) / d_k,    T_k = p + V_k.

For a difference of two points (`Scatter.variances`) s_k^2 alone says too little: three seeds leave two degrees of
freedom. The points therefore share a mean square m on D degrees of freedom (`Scatter.common`), the mean of those that
are alike: each is weighted by the probability that it is one of them and not one of a background of any size (Aitkin
and Wilson 1980). It stands in place of each point's own (Smyth 2004, with all weight on the prior), but

 - an outlying point takes nothing from the others (Phipson et al. 2016), and as its own mean square is uncertain, it has
   the upper limit of T_k that holds with `_UPPER`;
 - a control, alpha = 0, has at least its own mean square, for its noise is in all differences at once;
 - the shared V = m - p has an allowance for noisy points whose few seeds happen to agree. It falls with the seeds, rises
   with the number of comparisons that one such point makes false, and is nothing with two points.

All are drawn with D degrees of freedom, T_k D / chi^2(D), one draw for all points. With two points that is Student's t.
The constants were chosen by simulation, so that claims hold their level where one point is 2, 3 or 10 times as noisy as
the others and no more power is lost than need be (docs/intervals.md).

For the mean of one point (`Scatter.own`) its seeds alone are asked, with their own degrees of freedom: the others share
the effects of its seeds, so they tell little more about them, and they need not vary as it does.

p is in the error over prompts too, so it is subtracted from every draw of T_k (as in generalised pivots, Weerahandi 1993).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphapo_cli.runtime.statistics import chi_square

Array = NDArray[np.float64]
Runs = Mapping[Hashable, Array]  # of one point: seed -> outcome of every prompt, [P]
Line = Sequence[tuple[float, int]]  # points (x, index) along which the outcome should change smoothly, x ascending
LEAST_ON_A_LINE = 5
# A point is outlying beyond so many times the common mean square, a control sooner, and 1/6 more per degree of freedom:
# with few of them a noisy point is more easily taken for one of the others. With many, where 2 % of points alike are.
_OUTLYING, _OUTLYING_CONTROL, _PER_DEGREE, _RARE = 2.2, 1.6, 1 / 6, 0.02
_UPPER = 0.8  # confidence of the upper limit of an outlying point's variance
_ALLOWANCE = 2.3  # times log(comparisons) over the cube of the degrees of freedom of a difference
_BACKGROUND = 0.05  # density of log s_k^2 of points that are not alike
_STEPS = 50  # of the iteration that weights points; it has settled to six digits


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

    def common(self) -> tuple[float, float]:
        """The mean square of points that are alike, and its degrees of freedom."""
        known = self.freedom > 0
        s, d = self.squares[known], self.freedom[known]
        constant = np.array([math.lgamma(x / 2) for x in d])

        def density(ratio: Array) -> Array:  # of log s_k^2 where the point is alike
            found: Array = np.exp(d / 2 * np.log(d * ratio / 2) - d * ratio / 2 - constant)
            return found

        top = density(np.ones_like(d))
        mean, weights = float(np.median(s)), np.ones_like(d)
        for _ in range(_STEPS):
            alike = density(s / mean)
            # Relative to a point at the mean, and only for those above it: noise too small is no danger.
            weights = np.where(s <= mean, 1.0, alike / (alike + _BACKGROUND) * (top + _BACKGROUND) / top)
            mean = float(np.sum(weights * d * s) / np.sum(weights * d))
        return mean, float(np.sum(weights * d))

    def variances(self, controls: Collection[int], count: int, rng: np.random.Generator) -> Array:
        """Draws [count, K] of the variance that training noise adds to a run's mean, for differences of points.

        Args:
            controls: points that others are compared with.
            count: of draws.
            rng: of the draws.

        Returns:
            The draws.
        """
        mean, freedom = self.common()
        comparisons = max(int(np.sum(self.freedom > 0)) - 1, 1)
        each = float(self.freedom.sum()) / comparisons  # of a difference: seeds less one
        allowance = _ALLOWANCE * math.log(comparisons) / each**3
        squares = np.full(len(self.squares), mean + allowance * max(mean - self.from_prompts, 0.0))
        for k, (square, d) in enumerate(zip(self.squares.tolist(), self.freedom.tolist(), strict=True)):
            if d and square > mean * _outlying(d, k in controls):
                squares[k] = max(squares[k], square * d / chi_square.quantile(1 - _UPPER, d))
            elif k in controls:
                squares[k] = max(squares[k], square)
        return self._training(squares * freedom / rng.chisquare(freedom, size=(count, 1)))

    def own(self, count: int, rng: np.random.Generator) -> Array:
        """Draws [count, K] of the same from each point's own seeds; of points with one, from the others'."""
        mean, freedom = self.common()
        alone = self.freedom > 0
        squares, degrees = np.where(alone, self.squares, mean), np.where(alone, self.freedom, freedom)
        return self._training(squares * degrees / rng.chisquare(degrees, size=(count, len(degrees))))

    def _training(self, drawn: Array) -> Array:
        found: Array = np.maximum(drawn - self.from_prompts, 0.0)
        return found

    def draws(
        self, points: Sequence[Runs], controls: Collection[int], count: int, rng: np.random.Generator
    ) -> list[dict[Hashable, Array]]:
        """Draw the training noise of every run, [count] each, for differences from `controls`."""
        deviations = np.sqrt(self.variances(controls, count, rng))
        return [
            {s: deviations[:, k] * rng.standard_normal(count) for s in runs} for k, runs in enumerate(points)
        ]  # fmt: skip


def _outlying(freedom: float, control: bool) -> float:
    """Times the common mean square beyond which a point is outlying."""
    few = (_OUTLYING_CONTROL if control else _OUTLYING) + _PER_DEGREE * freedom
    return min(few, chi_square.quantile(1 - _RARE, freedom) / freedom)


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

"""Training noise: how much the mean outcome of a run changes with another seed.

Seeds are two or three a point, too few to estimate it for each point. It is estimated over all points together, as an
analysis of variance does; a point whose own seeds disagree more than that keeps its own. With one seed each there is
nothing to compare but neighbours: along a smooth curve over alpha, a point lies between the two beside it but for
noise (pseudo-residuals, Gasser, Sroka and Jennen-Steinmetz 1986). A curve that really is jagged counts as noise then.

The mean square of a run's mean includes the variance from its finitely many prompts. That part is resampled with the
prompts, so it is subtracted: draws of the remaining variance follow Weerahandi's generalised pivots (1993).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Runs = Mapping[Hashable, Array]  # of one point: seed -> outcome of every prompt, [P]
Line = Sequence[tuple[float, int]]  # points (x, index) along which the outcome should change smoothly, x ascending
# Fewer points give too few contrasts: five points have three inner ones.
LEAST_ON_A_LINE = 5


@dataclass(frozen=True)
class Scatter:
    """The mean square of the runs' means about their expectation, per point."""

    squares: list[float]
    freedom: int
    from_prompts: float  # the part that is due to prompts and sampled answers
    by_neighbours: bool = False

    def draws(self, points: Sequence[Runs], count: int, rng: np.random.Generator) -> list[dict[Hashable, Array]]:
        """Draw the training noise of every run, [count] each, with the uncertainty of its variance."""
        chi = rng.chisquare(self.freedom, size=count)
        made: list[dict[Hashable, Array]] = []
        for square, runs in zip(self.squares, points, strict=True):
            deviation = np.sqrt(np.maximum(square * self.freedom / chi - self.from_prompts, 0.0))
            made.append({s: deviation * rng.standard_normal(count) for s in runs})
        return made


def scatter(points: Sequence[Runs], lines: Sequence[Line], crossed: float, *, common_seeds: bool) -> Scatter | None:
    """Estimate training noise from seeds if any point has two, else from neighbours on `lines`.

    Args:
        points: outcomes of each point: seed -> [P].
        lines: points along which the outcome should change smoothly.
        crossed: the interaction of seed and prompt, as `crossed` returns it.
        common_seeds: whether the effect of a seed on all points alike is left out, because it cancels in differences.

    Returns:
        The estimate, or None if there are neither two seeds nor enough neighbours.
    """
    found = _from_seeds(points, crossed, common_seeds)
    # With too few seeds to separate their common effect on all points, it counts as noise.
    return found or _from_seeds(points, crossed, False) or _from_neighbours(points, lines)


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
    freedom = len(runs) - int(np.linalg.matrix_rank(design)) if runs else 0
    if freedom < 1:
        return None
    observed = np.array([points[k][s].mean() for k, s in runs])
    residuals = observed - design @ np.linalg.lstsq(design, observed, rcond=None)[0]
    pooled = float((residuals**2).sum()) / freedom
    owner = np.array([k for k, _ in runs])
    # The residuals of a point have its share of the freedom that is left among all runs.
    own = [
        float((residuals[owner == k] ** 2).mean()) * len(runs) / freedom if len(r) else 0.0
        for k, r in enumerate(points)
    ]
    return Scatter([max(pooled, square) for square in own], freedom, crossed)


def _from_neighbours(points: Sequence[Runs], lines: Sequence[Line]) -> Scatter | None:
    squares, from_prompts = [], []
    for line in lines:
        known = [(x, next(iter(points[k].values()))) for x, k in line if points[k]]
        if len(known) < LEAST_ON_A_LINE:
            continue
        for (x0, left), (x, middle), (x1, right) in zip(known, known[1:], known[2:], strict=False):
            weight = (x1 - x) / (x1 - x0)
            contrast = middle - weight * left - (1 - weight) * right  # [P]
            size = 1 + weight**2 + (1 - weight) ** 2
            squares.append(float(contrast.mean()) ** 2 / size)
            from_prompts.append(float(contrast.var(ddof=1)) / len(contrast) / size)
    # Overlapping contrasts are correlated (-2/3, 1/6): n of them are worth about n/2 independent ones.
    freedom = len(squares) // 2
    if freedom < 1:
        return None
    return Scatter([float(np.mean(squares))] * len(points), freedom, float(np.mean(from_prompts)), by_neighbours=True)

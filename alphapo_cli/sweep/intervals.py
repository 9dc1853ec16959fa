"""Intervals for a sweep's outcomes: per point, and for every point's advantage over its control at once.

Two things vary when a sweep is repeated: the prompts, and the results of training with another seed. All points and
seeds answer the same prompts, so comparisons are paired. Seeds are three to five, and points need not vary alike:
module `seed_noise` draws the variance of training noise with the uncertainty that so few leave, for differences from
all points that are alike, for one point's mean from its own seeds. With one seed each, training noise is unknown, and
the intervals are over prompts alone: they tell the trained models apart, not the alphas.

Picking the best of many points favours the winner. The intervals of `advantages` are therefore simultaneous: all of
them hold together with 95 %, so the winner's does, whichever it is.

    outcome    x[k, s, p] of point k, seed s, prompt p, in [0, 1]
    advantage  d[k, p] = mean over shared seeds of x[k, s, p] - x[control(k), s, p]
    draw r     e[r, k] = prompts[r, k] + noise[r, k] - noise[r, control(k)]
    interval   mean d[k] -+ h[k],  h[k] the same quantile of |e[., k]| for each k, such that all hold in 95 % of the draws

Sources: comparisons with a control, Dunnett 1955; equal quantiles for unequal distributions, Beran 1988 and Westfall
and Young 1993; crossed random effects of runs and prompts, Owen 2007. docs/intervals.md has the measured error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alphapo_cli.runtime.statistics.bounded_mean import mean_interval
from alphapo_cli.runtime.statistics.student import critical_value
from alphapo_cli.sweep.seed_noise import Array, Runs, crossed, scatter

PROMPTS, SEEDS = "prompts", "prompts and seeds"
DRAWS = 20_000
LEVEL = 0.95
# With fewer seeds of both points nothing is decided: a training that fails in one of three cases is missed by two seeds
# in 44 % of sweeps, and what its point varies by is then taken from the other points alone.
LEAST_SEEDS = 3
DISTINGUISHABLE, NOT, UNDECIDED = "distinguishable", "not distinguishable", "undecided"


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float
    over: str = PROMPTS  # of what another sample would give another value: PROMPTS or SEEDS
    seeds: int = 1  # that the mean is over

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """What the interval says of a difference; undecided where prompts or two seeds alone speak for one."""
        if not self.excludes_zero:
            return NOT
        return DISTINGUISHABLE if self.over == SEEDS and self.seeds >= LEAST_SEEDS else UNDECIDED


def advantages(points: Sequence[Runs], pairs: Sequence[tuple[int, int]], seed: int = 0) -> list[Estimate | None]:
    """Mean paired difference of each (point, control) pair, with simultaneous intervals.

    Args:
        points: outcomes of each point: seed -> [P] in [0, 1].
        pairs: indices (point, control) into `points`, K of them.
        seed: of the draws.

    Returns:
        K estimates; None for a pair that shares no seed or has fewer than two prompts. They are over prompts alone
        where no point has two seeds.
    """
    rng = np.random.default_rng(seed)
    shared = [[s for s in points[k] if s in points[control]] for k, control in pairs]
    usable = [i for i, seeds in enumerate(shared) if seeds and _prompts(points) > 1]
    found: list[Estimate | None] = [None] * len(pairs)
    if not usable:
        return found
    stacks = [np.stack([points[pairs[i][0]][s] - points[pairs[i][1]][s] for s in shared[i]]) for i in usable]
    differences = np.stack([stack.mean(axis=0) for stack in stacks])  # [K, P]
    errors = _drawn_errors(differences, rng)  # [R, K]
    # The variance of a difference is twice that of a run.
    noisy = scatter(points, crossed(stacks) / 2, common_seeds=True)
    if noisy is not None:
        noise = noisy.draws(points, {control for _, control in pairs}, DRAWS, rng)
        for column, i in enumerate(usable):
            ours, control = pairs[i]
            for k, sign in ((ours, 1.0), (control, -1.0)):
                errors[:, column] += sign * sum(noise[k][s] for s in shared[i]) / len(shared[i])
    half = _balanced(np.abs(errors))
    over = PROMPTS if noisy is None else SEEDS
    for i, mean, width in zip(usable, differences.mean(axis=1), half, strict=True):
        # Outcomes are shares, so no difference is beyond 1.
        found[i] = Estimate(
            float(mean), float(max(mean - width, -1.0)), float(min(mean + width, 1.0)), over, len(shared[i])
        )
    return found


def _balanced(errors: Array) -> Array:
    """Half-widths [K] that hold all of |errors| [R, K] with probability LEVEL, and each of them with the same one."""
    # A point whose training noise has few degrees of freedom gets a wide interval, and widens no other (Beran 1988).
    ordered = np.sort(errors, axis=0)
    ranks = errors.argsort(axis=0).argsort(axis=0).max(axis=1)  # of the least likely error of each draw
    place = int(np.quantile(ranks, LEVEL, method="higher"))
    half: Array = ordered[place]
    return half


def means(points: Sequence[Runs], seed: int = 0, *, bounded: bool = True) -> list[Estimate | None]:
    """Mean outcome of each point with its own 95 % interval (not simultaneous).

    The interval over prompts is that of `bounded_mean`, of values without bounds Student's. Training noise is added to it
    by the squares of the half-widths (MOVER, Zou and Donner 2008), which keeps it asymmetric near 0 and 1. It is that of the point's own seeds,
    Student's t: two leave one degree of freedom and a very wide interval.

    Args:
        points: outcomes of each point: seed -> [P], in [0, 1] where they are bounded.
        seed: of the draws.
        bounded: whether they are shares.

    Returns:
        An estimate for each point; None for a point without runs.
    """
    rng = np.random.default_rng(seed)
    usable = [k for k, runs in enumerate(points) if runs]
    found: list[Estimate | None] = [None] * len(points)
    if not usable or _prompts(points) < 2:
        return found
    stacks = [np.stack(list(points[k].values())) for k in usable]
    noisy = scatter(points, crossed(stacks), common_seeds=False)
    variances = noisy.own(DRAWS, rng) if noisy else None
    for k, stack in zip(usable, stacks, strict=True):
        values = stack.mean(axis=0)
        mean = float(values.mean())
        ends = mean_interval(values, LEVEL) if bounded else _student(values)
        assert ends is not None
        half = 0.0
        if variances is not None:
            half = float(np.quantile(np.sqrt(variances[:, k] / len(stack)) * np.abs(rng.standard_normal(DRAWS)), LEVEL))
        low, high = mean - math.hypot(mean - ends[0], half), mean + math.hypot(ends[1] - mean, half)
        over = PROMPTS if noisy is None else SEEDS
        if bounded:
            low, high = max(low, 0.0), min(high, 1.0)
        found[k] = Estimate(mean, low, high, over, len(stack))
    return found


def _student(values: Array) -> tuple[float, float]:
    """Student's interval of the mean of [P] values, P > 1."""
    half = critical_value(LEVEL, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _prompts(points: Sequence[Runs]) -> int:
    return next((len(values) for runs in points for values in runs.values()), 0)


def _drawn_errors(values: Array, rng: np.random.Generator) -> Array:
    """Errors [R, K] of the means of `values` [K, P] in [-1, 1] over prompts: multivariate t of their covariance."""
    # As in `bounded_mean`, a row at either bound is added to the variance; it is the same prompt for every point.
    prompts = values.shape[1]
    deviations = values - values.mean(axis=1, keepdims=True)
    covariance = (deviations @ deviations.T + 2.0) / (prompts - 1) / prompts
    roots, vectors = np.linalg.eigh(covariance)
    normal = rng.standard_normal((DRAWS, len(values))) * np.sqrt(np.maximum(roots, 0.0))
    freedom = prompts + 1
    errors: Array = normal @ vectors.T * np.sqrt(freedom / rng.chisquare(freedom, size=(DRAWS, 1)))
    return errors

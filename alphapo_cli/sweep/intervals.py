"""Intervals for a sweep's outcomes: per point, and for every point's advantage over its control at once.

Two things vary when a sweep is repeated: the prompts, and the results of training with another seed. Prompts are many,
so they are resampled (paired: all points and seeds see the same draw). Seeds are two or three, and resampling so few
shrinks their variance by (S - 1)/S and knows only a handful of outcomes; training noise is therefore drawn from a
normal of estimated variance (see `seed_noise`).

Picking the best of many points favours the winner. The intervals of `advantages` are therefore simultaneous: all of
them hold together with 95 %, so the winner's does, whichever it is.

    outcome    x[k, s, p] of point k, seed s, prompt p, in [0, 1]
    advantage  d[k, p] = mean over shared seeds of x[k, s, p] - x[control(k), s, p]
    draw r     e[r, k] = resampled mean of d[k] - mean d[k] + noise[r, k] - noise[r, control(k)]
    interval   mean d[k] -+ c * scale[k],  c = 95 % quantile over r of max over k of |e[r, k]| / scale[k]

Sources: comparisons with a control, Dunnett 1955; the studentised maximum over a bootstrap, Westfall and Young 1993 and
Romano and Wolf 2005; crossed random effects of runs and prompts, Owen 2007. On simulated sweeps of 2 to 13 points
without any effect (300 each; tests/sweep/test_intervals.py has some of them) the winner is called distinguishable in
at most 3 % where training noise is the same everywhere, also with one seed over alpha. Where alpha = 0 alone is ten
times as noisy as all others it is 10 % (two seeds) or 6 % (three). Resampling prompts alone says so in up to 70 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alphapo_cli.sweep.seed_noise import Array, Line, Runs, crossed, scatter

DRAWS = 4000
LEVEL = 0.95
# Half-widths are compared in units of this quantile of |e|: one standard deviation of a normal. The standard deviation
# itself is infinite where training noise has one or two degrees of freedom.
_ONE_SIGMA = 0.6827
# If all prompts have the same outcome, resampling shows no variance. The half-width is then at least that of one prompt
# in P: with this quantile about 2/P, close to the rule of three (Hanley and Lippman-Hand 1983).
_NORMAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0


def advantages(
    points: Sequence[Runs], pairs: Sequence[tuple[int, int]], lines: Sequence[Line] = (), seed: int = 0
) -> list[Estimate | None]:
    """Mean paired difference of each (point, control) pair, with simultaneous intervals.

    With one seed each, training noise is estimated from neighbours on `lines`; without those the interval is about the
    trained models alone, and another training may differ by more.

    Args:
        points: outcomes of each point: seed -> [P] in [0, 1].
        pairs: indices (point, control) into `points`, K of them.
        lines: points along which the outcome should change smoothly.
        seed: of the bootstrap.

    Returns:
        K estimates; None for a pair that shares no seed or has fewer than two prompts.
    """
    rng = np.random.default_rng(seed)
    shared = [[s for s in points[k] if s in points[control]] for k, control in pairs]
    usable = [i for i, seeds in enumerate(shared) if seeds and _prompts(points) > 1]
    found: list[Estimate | None] = [None] * len(pairs)
    if not usable:
        return found
    stacks = [np.stack([points[pairs[i][0]][s] - points[pairs[i][1]][s] for s in shared[i]]) for i in usable]
    differences = np.stack([stack.mean(axis=0) for stack in stacks])  # [K, P]
    errors = _resampled(differences, rng)  # [R, K]
    # The variance of a difference is twice that of a run.
    noisy = scatter(points, lines, crossed(stacks) / 2, common_seeds=True)
    if noisy is not None:
        noise = noisy.draws(points, DRAWS, rng)
        for column, i in enumerate(usable):
            ours, control = pairs[i]
            for k, sign in ((ours, 1.0), (control, -1.0)):
                errors[:, column] += sign * sum(noise[k][s] for s in shared[i]) / len(shared[i])
    scale = np.maximum(np.quantile(np.abs(errors), _ONE_SIGMA, axis=0), 1 / differences.shape[1])
    half = max(float(np.quantile((np.abs(errors) / scale).max(axis=1), LEVEL)), _NORMAL) * scale
    for i, mean, width in zip(usable, differences.mean(axis=1), half, strict=True):
        # Outcomes are shares, so no difference is beyond 1.
        found[i] = Estimate(float(mean), float(max(mean - width, -1.0)), float(min(mean + width, 1.0)))
    return found


def means(points: Sequence[Runs], lines: Sequence[Line] = (), seed: int = 0) -> list[Estimate | None]:
    """Mean outcome of each point with its own 95 % interval (not simultaneous); None for a point without runs."""
    rng = np.random.default_rng(seed)
    usable = [k for k, runs in enumerate(points) if runs]
    found: list[Estimate | None] = [None] * len(points)
    if not usable or _prompts(points) < 2:
        return found
    stacks = [np.stack(list(points[k].values())) for k in usable]
    averages = np.stack([stack.mean(axis=0) for stack in stacks])
    errors = _resampled(averages, rng)
    noisy = scatter(points, lines, crossed(stacks), common_seeds=False)
    noise = noisy.draws(points, DRAWS, rng) if noisy else None
    tail = (1 - LEVEL) / 2
    for column, k in enumerate(usable):
        if noise is not None:
            errors[:, column] += sum(noise[k].values()) / len(noise[k])
        mean = averages[column].mean()
        least = _NORMAL / averages.shape[1]
        low, high = np.quantile(errors[:, column], [tail, 1 - tail])
        found[k] = Estimate(
            float(mean), float(max(mean + min(low, -least), 0.0)), float(min(mean + max(high, least), 1.0))
        )
    return found


def _prompts(points: Sequence[Runs]) -> int:
    return next((len(values) for runs in points for values in runs.values()), 0)


def _resampled(values: Array, rng: np.random.Generator) -> Array:
    """Errors [R, K] of the means of `values` [K, P] over resampled prompts, the same resample for every row."""
    prompts = values.shape[1]
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS)  # [R, P]
    # A resample's variance is (P - 1)/P of the sample's.
    deviations = (values - values.mean(axis=1, keepdims=True)) * np.sqrt(prompts / (prompts - 1))
    errors: Array = counts @ deviations.T / prompts
    return errors

"""How many seeds would tell a difference of the size seen, from the noise at hand.

A difference of S seeds each has the variance  fixed + (2 noise + crossed) / S:  that over prompts which more seeds do
not reduce, training noise of both points (the mean of their variances), and the interaction of seeds and prompts. It is told with a probability of
80 % if it is (c + 0.84) standard errors, c the critical value of Student's t for all comparisons together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from alphapo_cli.runtime.statistics.student import critical_value
from alphapo_cli.sweep.intervals import LEAST_SEEDS, LEVEL
from alphapo_cli.sweep.seed_noise import Array, Line, Runs, crossed, neighbours, scatter

POWER = 0.8
MOST = 50


@dataclass(frozen=True)
class SeedsNeeded:
    """`seeds` of each point; None: more than `MOST`, or none would do. `deviation`: s.d. of training noise."""

    seeds: int | None
    deviation: float
    by_neighbours: bool  # whether the noise is that between neighbouring alphas, for want of seeds


def seeds_needed(
    points: Sequence[Runs], pair: tuple[int, int], lines: Sequence[Line], least: int = LEAST_SEEDS
) -> SeedsNeeded | None:
    """Seeds of each point that would tell the difference of two points.

    Args:
        points: outcomes of each point: seed -> [P].
        pair: point and control, which share a seed.
        lines: points along which the outcome should change smoothly.
        least: fewest seeds that are advised.

    Returns:
        The number, above that of the seeds at hand, which did not tell it; None where there is no estimate of training noise, or no difference.
    """
    ours, control = (points[k] for k in pair)
    stack = np.stack([ours[s] - control[s] for s in ours if s in control])
    difference = abs(float(stack.mean()))
    # What one seed does to single prompts is in its variance over prompts, too: others' seeds tell how much it is.
    both = crossed([stack]) if len(stack) > 1 else crossed(_of_others(points, control))
    known = scatter(points, both / 2, common_seeds=True)
    # That of all points, or of the two compared where theirs is larger.
    noise = neighbours(points, lines) if known is None else max(known.pooled, known.of(pair))
    if noise is None or difference == 0.0:
        return None
    seeds = len(stack)
    prompts = stack.shape[1]
    over_prompts = float(stack.mean(axis=0).var(ddof=1)) / prompts if prompts > 1 else 0.0
    # As in the interval, with a row at either bound.
    fixed = max(over_prompts - both / seeds, 0.0) + 2.0 / prompts**2
    found = None
    for n in range(max(least, seeds + 1), MOST + 1):
        c = critical_value(1 - (1 - LEVEL) / max(len(points) - 1, 1), (n - 1) * max(len(points) - 1, 1))
        if (c + NormalDist().inv_cdf(POWER)) * math.sqrt(fixed + (2 * noise + both) / n) <= difference:
            found = n
            break
    return SeedsNeeded(found, math.sqrt(noise), known is None)


def _of_others(points: Sequence[Runs], control: Runs) -> list[Array]:
    """Differences [S, P] from the control of the points that share several seeds with it."""
    shared = [(runs, [s for s in runs if s in control]) for runs in points if runs is not control]
    return [np.stack([runs[s] - control[s] for s in seeds]) for runs, seeds in shared if len(seeds) > 1]

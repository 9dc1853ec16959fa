"""Trainings that collapsed: seeds whose outcome is far below that of the point's other seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_high
from typing import Any

ADVISED = 5  # seeds, where trainings collapse: a third that does is missed by three in 30 %, by five in 13 %
_LEAST = 0.1  # of the outcome, a share
_DEVIATIONS = 4.0


@dataclass(frozen=True)
class Collapse:
    """One training; `point`: index of its point."""

    point: int
    seed: Hashable
    value: float


def collapsed(points: Sequence[Mapping[Any, float]]) -> list[Collapse]:
    """Find collapsed trainings.

    Args:
        points: outcome of each seed, by point.

    Returns:
        Trainings that are below the (upper) median of their point's seeds by more than 0.1, and by more than four
        standard deviations as the median distance of all trainings from their point's median tells them (MAD, Iglewicz
        and Hoaglin 1993). The lower of two seeds that disagree counts as the collapsed one.
    """
    centres = [median_high(runs.values()) if len(runs) > 1 else None for runs in points]
    below = [
        (k, seed, value, centre - value)
        for k, (runs, centre) in enumerate(zip(points, centres, strict=True))
        if centre is not None
        for seed, value in runs.items()
    ]
    # The seed that is the median itself, one a point, says nothing about the spread.
    distances = sorted(abs(drop) for *_, drop in below)[sum(c is not None for c in centres) :]
    if not distances:
        return []
    limit = max(_LEAST, _DEVIATIONS * 1.4826 * median(distances))
    return [Collapse(k, seed, value) for k, seed, value, drop in below if drop > limit]


def unseen(seeds: int) -> float:
    """Upper 95 % limit of the share of trainings that collapse, if none of `seeds` did (Clopper and Pearson 1934)."""
    return 1.0 - math.pow(0.05, 1.0 / seeds)

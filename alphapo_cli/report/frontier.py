"""Win rate against distance from the start, over all cells of a sweep, and the points that none beats in both.

A point's path holds every model of it whose win rate and KL are known: those that the probe read in training, those that
the fractions of eval.at kept, and the run's own at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from alphapo_cli.report.collect import ReportCell, Sweep, number
from alphapo_cli.sweep.record import JUDGED, WIN_RATE

KL = "kl/reference"
RATES = (JUDGED, WIN_RATE)


@dataclass(frozen=True)
class Place:
    """A model on the way: optimizer step, KL from the start in nats per token, and win rate (0 to 1)."""

    step: int
    kl: float
    rate: float


@dataclass(frozen=True)
class Frontier:
    """Path of every point that has one, by its position, in order of steps; and the points whose ends none beats."""

    metric: str
    paths: Mapping[int, Sequence[Place]]
    front: tuple[int, ...]


def frontier(sweep: Sweep) -> Frontier | None:
    """The paths of a sweep's points, means over their complete cells at the steps that all of these have.

    Args:
        sweep: the sweep.

    Returns:
        The paths and the frontier; None where the sweep's outcome is no win rate, or no cell has a KL beside it.
    """
    metric = sweep.analysis.metric
    if metric not in RATES:
        return None
    paths: dict[int, list[Place]] = {}
    for point in range(len(sweep.points)):
        cells = [cell for cell in sweep.cells if cell.point == point and cell.state == "complete"]
        path = mean_path([found for cell in cells if (found := path_of(cell, metric))])
        if path:
            paths[point] = path
    return Frontier(metric, paths, front(paths)) if paths else None


def path_of(cell: ReportCell, metric: str) -> list[Place]:
    """The models of one cell whose KL and win rate are known, in order of their steps, up to the one that it kept."""
    found: dict[int, Place] = {}
    last = cell.model_step

    def add(step: Any, kl: Any, rate: Any) -> None:
        numbers = number(step), number(kl), number(rate)
        if None not in numbers:
            found[int(numbers[0] or 0)] = Place(int(numbers[0] or 0), numbers[1] or 0.0, numbers[2] or 0.0)

    for row in cell.rows:
        add(row.get("step"), row.get(KL), row.get(metric))
    for row in cell.run.outcome().get("over_training") or ():
        if isinstance(row, Mapping):
            metrics, probe = (
                part if isinstance(part, Mapping) else {} for part in (row.get("metrics"), row.get("probe"))
            )
            add(row.get("step"), probe.get(KL), metrics.get(metric))
    add(last, cell.final.get(KL), cell.final.get(metric))
    return [found[step] for step in sorted(found) if step <= last]


def mean_path(paths: Sequence[Sequence[Place]]) -> list[Place]:
    """The mean of several cells' paths at the steps that all have, and of their ends, which may lie at other steps."""
    if not paths:
        return []
    by_step = [{place.step: place for place in path[:-1]} for path in paths]
    shared = sorted(set.intersection(*map(set, by_step)))
    steps = [[places[step] for places in by_step] for step in shared] + [[path[-1] for path in paths]]
    return [
        Place(max(p.step for p in places), fmean(p.kl for p in places), fmean(p.rate for p in places))
        for places in steps
    ]


def front(paths: Mapping[int, Sequence[Place]]) -> tuple[int, ...]:
    """The points at whose end no other end, and no model before training, wins as much at less KL or more at as little.

    Args:
        paths: by point.

    Returns:
        The points, by KL.
    """
    starts = [place for path in paths.values() for place in path if place.step == 0]
    rivals = [*starts, *(path[-1] for path in paths.values())]

    def beaten(end: Place) -> bool:
        return any(
            (one.kl <= end.kl and one.rate > end.rate) or (one.kl < end.kl and one.rate >= end.rate) for one in rivals
        )

    kept = [point for point, path in paths.items() if not beaten(path[-1])]
    return tuple(sorted(kept, key=lambda point: paths[point][-1].kl))

"""The plan of a sweep: its cells, how many run at a time, what they take together, and a smaller grid to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from alphapo_cli.config.objective_parts import at_zero
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.launch.launchers.local import worker_count
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.stages.estimate.case import Case, prepare_case
from alphapo_cli.stages.estimate.inputs import DataBuilder
from alphapo_cli.stages.estimate.training import Asked, Estimate, estimate
from alphapo_cli.storage.hashing import digest
from alphapo_cli.sweep.grid import Cell, Grid

_FEW = 3  # values of a key in the smaller grid
# Settings of the trainer that change neither memory nor time.
_FREE = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
         "adam_epsilon", "max_grad_norm")  # fmt: skip


@dataclass(frozen=True)
class Smaller:
    """A smaller grid: its overrides, and its number of cells."""

    overrides: tuple[str, ...]
    cells: int


@dataclass(frozen=True)
class GridEstimate:
    """The plan of a sweep.

    Attributes:
        cells: number of cells.
        kinds: (cells, the plan of one of them) for each kind of cell that differs in what it takes; largest first.
        at_a_time: cells that run at a time at most; None: as many as the scheduler starts.
        launcher: name of the launcher.
        processes: that train each cell.
        smaller: a grid to try first; None where this one is small.
    """

    cells: int
    kinds: tuple[tuple[int, Estimate], ...]
    at_a_time: int | None
    launcher: str
    processes: int
    smaller: Smaller | None

    @property
    def abreast(self) -> int:
        """Cells that run at a time, all of them where the launcher has no limit."""
        return min(self.cells, self.at_a_time or self.cells)

    @property
    def serial(self) -> float | None:
        """Seconds of all cells one after another; None where the speed is not known."""
        total = 0.0
        for count, one in self.kinds:
            if one.seconds is None:
                return None
            total += count * sum(one.seconds.values())
        return total

    @property
    def seconds(self) -> float | None:
        """Seconds of the sweep."""
        return None if self.serial is None else self.serial / self.abreast

    @property
    def needed(self) -> int:
        """Bytes of memory of the cells that share a machine's, the largest kind: those of a worker have a GPU each."""
        first = self.kinds[0][1]
        shared = self.launcher == "local" and first.memory.device == "cpu"
        return (self.abreast if shared else 1) * first.needed

    @property
    def disk(self) -> int:
        """Bytes that the sweep leaves, with the peak of the cells that run last."""
        left = sum(count * one.disk.left for count, one in self.kinds)
        return left + self.abreast * max(one.disk.peak - one.disk.left for _, one in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON types, sizes in bytes."""
        return {
            "cells": self.cells,
            "cells_at_a_time": self.at_a_time,
            "launcher": self.launcher,
            "processes": self.processes,
            "seconds": self.seconds,
            "cell_seconds": self.serial,
            "memory_needed": self.needed,
            "disk": self.disk,
            "kinds": [{"cells": count, **one.as_json()} for count, one in self.kinds],
            "try_first": None if self.smaller is None else asdict(self.smaller),
        }


def estimate_grid(grid: Grid, launcher: LauncherConfig, world: int | None, asked: Asked) -> GridEstimate:
    """Plan a sweep.

    Args:
        grid: its cells.
        launcher: the settings of `launcher.*`.
        world: processes of each cell; None: those of the launcher.
        asked: what is asked for beside the configurations.

    Returns:
        The plan.

    Raises:
        UsageError: as the sweep refuses one of its cells.
    """
    builder, gpu = DataBuilder(warm=True), asked.memory is not None
    if asked.memory is None and launcher.memory_gb is not None:
        asked = replace(asked, memory=int(launcher.memory_gb * 1e9) // launcher.nproc_per_node)  # of a process
    world = world or launcher.nproc_per_node * launcher.nodes
    kinds: dict[str, tuple[Case, list[Cell]]] = {}
    for cell in grid.cells:
        case = prepare_case(cell.cfg, world, builder, divided=True, gpu=gpu)
        kinds.setdefault(_kind(case), (case, []))[1].append(cell)
    found = [(len(cells), estimate(case, asked)) for case, cells in kinds.values()]
    found.sort(key=lambda kind: -kind[1].needed)
    configs = [cell.cfg for cell in grid.cells]
    return GridEstimate(
        len(grid.cells), tuple(found), _at_a_time(launcher, configs), launcher.name, world, smaller_grid(grid)
    )  # fmt: skip


def _kind(case: Case) -> str:
    """Hash of all of a cell that decides what it takes, the order of its pairs left out."""
    cfg, objective = case.cfg, case.objective
    trainer = {key: value for key, value in asdict(cfg.trainer).items() if key not in _FREE}
    reads = [objective.needs_reference, objective.reference_every is not None, objective.needs_kl,
             objective.needs_statistics, case.sides, case.reads_guide]  # fmt: skip
    parts = [asdict(cfg.model), asdict(cfg.data), asdict(cfg.probe), asdict(cfg.sharding), cfg.layout]
    return digest([parts, trainer, reads, case.start.data.key])


def _at_a_time(launcher: LauncherConfig, configs: list[TrainConfig]) -> int | None:
    if launcher.name != "local":
        return launcher.workers
    return max(1, min(worker_count(launcher.workers, configs, launcher.nproc_per_node), len(configs)))


def smaller_grid(grid: Grid) -> Smaller | None:
    """The grid to try first: of seeds the first one, of numbers the lowest, zero or a middle one and the highest.

    Args:
        grid: the whole grid.

    Returns:
        The smaller grid; None where it would be this one.
    """
    kept = {key: _few(key, [cell.point[key] for cell in grid.cells], grid.base) for key in grid.keys}
    cells = sum(all(cell.point[key] in kept[key] for key in grid.keys) for cell in grid.cells)
    if cells >= len(grid.cells) or not cells:
        return None
    return Smaller(tuple(f"{key}={','.join(_text(v) for v in values)}" for key, values in kept.items()), cells)


def _few(key: str, every: list[Any], base: Mapping[str, Any]) -> list[Any]:
    values = list(dict.fromkeys(every))
    if key == "seed":
        return values[:1]
    if len(values) <= _FEW or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    ):
        return values
    ordered = sorted(values)
    zero = 0 if 0 in ordered and key.endswith("alpha") and at_zero(base) else None
    middle = zero if zero is not None else ordered[len(ordered) // 2]
    return list(dict.fromkeys([ordered[0], middle, ordered[-1]]))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

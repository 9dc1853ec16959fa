"""The interface between the sweep engine and the launchers that run its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.stages.plan import Plan


@dataclass(frozen=True)
class CellProcesses:
    """The processes that train one cell, by torchrun's names."""

    nproc_per_node: int = 1
    nodes: int = 1
    cores: int = 1  # that those of a node share; one process alone has all that it finds

    @property
    def world(self) -> int:
        """Their number."""
        return self.nproc_per_node * self.nodes

    @property
    def threads(self) -> int:
        """Threads of each of several, where trainer.threads does not say."""
        return max(1, self.cores // self.nproc_per_node)

    @property
    def description(self) -> str:
        """In words, for messages."""
        return f"{self.world} processes" + (f" on {self.nodes} nodes" if self.nodes > 1 else "")


@dataclass(frozen=True)
class CellJob:
    """One cell of a sweep to run."""

    sweep: str  # the sweep's directory, absolute
    folder: str  # working directory of the command; paths in `cfg` are relative to it
    id: str
    overrides: tuple[str, ...]
    cfg: TrainConfig
    plan: Plan | None = None  # generation and evaluation after training; None: training alone
    processes: CellProcesses = field(default_factory=CellProcesses)

    @property
    def title(self) -> str:
        """The cell's overrides, for messages."""
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    `state` is the run's (complete, stopped, failed, interrupted), or `busy` (another process works on the cell), or
    `lost` (the process that ran it died without a result).
    """

    job: CellJob
    state: str
    reason: str | None = None


class Launcher(Protocol):
    """Runs jobs. Every job that was started is returned by `wait` exactly once, however it ends."""

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Load and check models and data of the cells before the first one starts, and fill the caches.

        Args:
            cells: the cells' configurations.
            plan: generation and evaluation after training; None for none.

        Raises:
            UsageError: a model, data or file of the cells or of the plan cannot be used.
        """

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Queue jobs; may be called again while others run."""

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that ended since the last call; waits at most `seconds` for the first one."""

    def stop(self) -> None:
        """Start no more jobs, and make the running ones save a checkpoint and end."""

    def under_way(self) -> list[CellJob]:
        """The jobs that are running."""

    def close(self) -> None:
        """End all jobs at once and release processes and connections."""

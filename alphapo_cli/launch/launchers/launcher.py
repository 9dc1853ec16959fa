"""What the sweep engine asks of whatever runs its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.stages.plan import Plan


@dataclass(frozen=True)
class CellJob:
    """One cell to run."""

    sweep: str  # the sweep's directory, absolute
    folder: str  # where the line was typed; paths in `cfg` are relative to it
    id: str
    overrides: tuple[str, ...]
    cfg: TrainConfig
    plan: Plan | None = None  # what is done with the trained run

    @property
    def title(self) -> str:
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Ended:
    """A job that is over.

    `state` is the run's (complete, stopped, failed, interrupted), or `busy`: another process works on the cell, or
    `lost`: whatever ran it is gone without a word.
    """

    job: CellJob
    state: str
    reason: str | None = None


class Launcher(Protocol):
    """Runs jobs somewhere. Every job that was started ends exactly once, however it ends."""

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Check what the cells train on, before the first of them starts, and fill the caches.

        Raises:
            UsageError: bad input.
        """

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Queue jobs; may be called again while others run."""

    def wait(self, seconds: float) -> list[Ended]:
        """What ended since the last call, waiting at most `seconds` for the first."""

    def stop(self) -> None:
        """Start nothing more, and ask what runs to save a checkpoint and end."""

    def under_way(self) -> list[CellJob]:
        """What runs now."""

    def close(self) -> None:
        """End everything at once and give back what was taken."""

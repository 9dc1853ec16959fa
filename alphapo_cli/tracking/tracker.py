"""What a run asks of an experiment tracker, and one that does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]
Lines = Mapping[str, Sequence[tuple[float, float]]]  # label -> (step, value)


class Tracker(Protocol):
    """Receives the metrics and pictures of one run. No method raises."""

    def log(self, step: int, row: Row) -> None:
        """Log the numbers of `row` at the optimizer step `step` (non-decreasing over calls); nulls are left out."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log the PNG at `path` as `name`."""

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Log `rows` as a table whose columns are the union of their keys."""

    def tag(self, name: str) -> None:
        """Add a tag to the run."""

    def overlay(self, name: str, lines: Lines, step: int) -> None:
        """Log one chart with a line for each entry of `lines`."""

    def finish(self, summary: Row, exit_code: int) -> None:
        """Write the summary and close the run: as finished where `exit_code` is 0, else as failed."""

    def sync_hint(self) -> str | None:
        """The command that uploads an offline run, or None when there is nothing to upload."""


class NullTracker:
    """A `Tracker` that does nothing, for tracking.mode=disabled."""

    def log(self, step: int, row: Row) -> None:
        """Do nothing."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Do nothing."""

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Do nothing."""

    def tag(self, name: str) -> None:
        """Do nothing."""

    def overlay(self, name: str, lines: Lines, step: int) -> None:
        """Do nothing."""

    def finish(self, summary: Row, exit_code: int) -> None:
        """Do nothing."""

    def sync_hint(self) -> str | None:
        """None: there is nothing to upload."""
        return None


def rows_by_step(history: Sequence[Row]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of `history` merged by step, in ascending order; where two rows have a key, the later one wins."""
    joined: dict[int, dict[str, Any]] = {}
    for row in history:
        if row.get("step") is not None:
            joined.setdefault(int(row["step"]), {}).update(row)
    yield from sorted(joined.items())

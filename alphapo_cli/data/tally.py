"""Counts of rows by what was found in them, each with the first row where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Numbers of rows by finding, in order of the first row; `first`: where that is, a text or a position."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, where: Any, rows: int = 1) -> None:
        """Count rows with the finding `what`, of which `where` is the first."""
        self.counts[what] = self.counts.get(what, 0) + rows
        self.first.setdefault(what, where)

    def update(self, other: Tally) -> None:
        """Add the counts of later rows."""
        for what, rows in other.counts.items():
            self.add(what, other.first[what], rows)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """(finding, rows, first row) of each."""
        return ((what, rows, self.first[what]) for what, rows in self.counts.items())

    @property
    def as_json(self) -> dict[str, list[Any]]:
        """Findings as {what: [rows, first]}."""
        return {what: [rows, first] for what, rows, first in self}

    @classmethod
    def from_json(cls, values: Mapping[str, list[Any]]) -> Tally:
        """The tally that `as_json` wrote."""
        found = cls()
        for what, (rows, first) in values.items():
            found.add(what, first, rows)
        return found

"""A least-recently-used memo of model, data and log-probs, shared by the runs of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# (key, make): the value that is stored under the key, else the value of `make()`, which is then stored.
Memoize = Callable[[str, Callable[[], Any]], Any]


def no_memo(key: str, make: Callable[[], Any]) -> Any:
    """A `Memoize` that stores nothing, for a process with a single run."""
    return make()


@dataclass
class _Entry:
    value: Any
    owners: set[str]


class LRUMemo:
    """Values by key, each kept while one of the most recent owners has asked for it.

    An owner is a combination of model and data (`identity.inputs_key`), which several runs may share.

    Args:
        owners: how many of the most recent owners keep their values.
    """

    def __init__(self, owners: int) -> None:
        self.most = owners
        self.owners: list[str] = []  # the most recent one last
        self.kept: dict[str, _Entry] = {}

    def open(self, owner: str) -> None:
        """Make `owner` the current one, and drop values that only evicted owners have asked for."""
        self.owners = [*(name for name in self.owners if name != owner), owner]
        for gone in self.owners[: -self.most]:
            for kept in self.kept.values():
                kept.owners.discard(gone)
        self.owners = self.owners[-self.most :]
        self.kept = {key: kept for key, kept in self.kept.items() if kept.owners}

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """The value stored under `key`, else that of `make()`, which is then stored; counted for the current owner."""
        if key not in self.kept:
            self.kept[key] = _Entry(make(), set())
        self.kept[key].owners.add(self.owners[-1])
        return self.kept[key].value

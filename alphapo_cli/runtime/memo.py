"""What is the same in several runs of one process is made once. Imports nothing heavy: a sweep orders its cells by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.storage.hashing import digest

T = TypeVar("T")

Memoize = Callable[
    [str, Callable[[], Any]], Any
]  # (key, make): what was made under the key before, else what `make` makes


def no_memo(key: str, make: Callable[[], Any]) -> Any:
    """A `Memoize` that keeps nothing: there is no other run."""
    return make()


@dataclass
class _Entry:
    value: Any
    owners: set[str]


class LRUMemo:
    """Keeps what is made by key, as long as one of its latest owners has asked for it; the rest is let go."""

    def __init__(self, owners: int) -> None:
        self.most = owners
        self.owners: list[str] = []  # the latest one last
        self.kept: dict[str, _Entry] = {}

    def open(self, owner: str) -> None:
        """From now on `owner` asks."""
        self.owners = [*(name for name in self.owners if name != owner), owner]
        for gone in self.owners[: -self.most]:
            for kept in self.kept.values():
                kept.owners.discard(gone)
        self.owners = self.owners[-self.most :]
        self.kept = {key: kept for key, kept in self.kept.items() if kept.owners}

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """What was made under the key before, else what `make` makes; for the owner that asks."""
        if key not in self.kept:
            self.kept[key] = _Entry(make(), set())
        self.kept[key].owners.add(self.owners[-1])
        return self.kept[key].value


def inputs_key(cfg: TrainConfig) -> str:
    """A hash of the settings that a run's model and data depend on."""
    seed = cfg.seed if cfg.model.source == "from_scratch" else 0
    return digest([asdict(cfg.model), asdict(cfg.data), cfg.probe.pairs, seed])

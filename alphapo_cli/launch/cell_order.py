"""Order of a sweep's cells: those with the same model and data run one after another and share them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.runs.identity import inputs_key

T = TypeVar("T")


def together(runs: Iterable[T], cfg: Callable[[T], TrainConfig]) -> list[T]:
    """Stable grouping of the runs by model and data; `cfg` gives the configuration of a run."""
    groups: dict[str, list[T]] = {}
    for run in runs:
        groups.setdefault(inputs_key(cfg(run)), []).append(run)
    return [run for group in groups.values() for run in group]

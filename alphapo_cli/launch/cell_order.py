"""The order in which cells of a sweep run, so that those of one model and data share what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.runtime.memo import T, inputs_key


def together(runs: Iterable[T], cfg: Callable[[T], TrainConfig]) -> list[T]:
    """The runs in their order, but those of the same model and data one after the other."""
    groups: dict[str, list[T]] = {}
    for run in runs:
        groups.setdefault(inputs_key(cfg(run)), []).append(run)
    return [run for group in groups.values() for run in group]

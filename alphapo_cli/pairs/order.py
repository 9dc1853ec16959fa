"""Order: the order of pairs.jsonl, and the stage of each pair for `trainer.order=stages`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from alphapo_cli.pairs.rules import Pair
from alphapo_cli.pairs.schema import OrderConfig

SHUFFLE = "shuffle"


def ordered(pairs: Sequence[Pair], cfg: OrderConfig, numbers: Mapping[str, Sequence[float]], seed: int) -> list[Pair]:
    """Order pairs and number their stages.

    Args:
        pairs: n pairs.
        cfg: the settings.
        numbers: holds the number that `cfg.by` names.
        seed: of the shuffle, which is by hashes: the order of the rows that were read plays no part.

    Returns:
        The n pairs; without stages every `stage` is 1. Pairs without the number come last.
    """
    drawn = {pair.key: hashlib.sha256(f"{seed}/{pair.key}".encode()).hexdigest() for pair in pairs}
    rank = {pair.key: math.inf for pair in pairs}
    if cfg.by != SHUFFLE:
        sign = -1.0 if cfg.descending else 1.0
        values = zip(pairs, numbers[cfg.by], strict=True)
        rank = {pair.key: math.inf if math.isnan(value) else sign * value for pair, value in values}
    found = sorted(pairs, key=lambda pair: (rank[pair.key], drawn[pair.key]))
    if cfg.per_prompt:
        return _per_prompt(found, cfg.stages)
    if cfg.stages is None:
        return found
    stages = min(cfg.stages, len(found))  # none is empty
    return [replace(pair, stage=1 + n * stages // len(found)) for n, pair in enumerate(found)]


def _per_prompt(pairs: Sequence[Pair], stages: int | None) -> list[Pair]:
    """Stage n has the n-th pair of each prompt; pairs beyond the last stage are in the last one."""
    seen: dict[str, int] = {}
    found = []
    for pair in pairs:
        number = seen[pair.candidates.key] = seen.get(pair.candidates.key, 0) + 1
        found.append(replace(pair, stage=min(number, stages or number)))
    return sorted(found, key=lambda pair: pair.stage)

"""What a training writes: the model, its checkpoints, the best model's weights and the cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.stages.estimate.case import Case
from alphapo_cli.stages.estimate.phases import Alive
from alphapo_cli.stages.training.kept_models import kept_steps

_FLOAT64 = 8


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Attributes:
        parts: (what, bytes, words).
        peak: most bytes at a time in the run directory.
        left: bytes that a complete run leaves there.
        cache: bytes in the cache directory.
        free: free bytes where the run directory would be.
    """

    parts: tuple[tuple[str, int, str], ...]
    peak: int
    left: int
    cache: int
    free: int


def disk_of(case: Case, cfg: TrainConfig, alive: Alive) -> Disk:
    """Predict what a training writes.

    Args:
        case: data and objective.
        cfg: the configuration.
        alive: the sizes of its model; of shards, those of one process times their number are on disk.

    Returns:
        The prediction. Texts, metrics and pictures, a few MB, are not counted.
    """
    shards = round(alive.whole / alive.weights)
    adapter = alive.adapters and not cfg.model.merge
    model = alive.adapters * shards if adapter else alive.merged
    moving = alive.frozen.get("moving reference", 0)
    one = shards * (alive.trained + alive.moments + moving)
    steps = case.order(cfg).total_steps
    written = (steps - 1) // cfg.trainer.save_steps
    limit = cfg.trainer.save_total_limit
    kept = written if limit is None else min(written, limit)
    most = min(written, kept + 1)  # the next one is whole before the oldest goes
    earlier = len(kept_steps(cfg.trainer.save_models_at, steps)) * model
    best = 2 * shards * alive.trained if cfg.trainer.load_best_model_at_end else 0
    cache = _tokens(case.pairs) + _tokens(case.start.data.probe)
    if case.objective.needs_reference:
        cache += _FLOAT64 * case.sides * (len(case.pairs) + len(case.start.data.probe))
    if case.reads_guide and cfg.model.guide is not None:
        cache += 2 * _tokens(case.pairs)  # four bytes for each token, of guide and reference
    words = f"{written:,} written, every {cfg.trainer.save_steps:,} steps, {kept:,} kept until the end"
    parts = [
        ("model", model, "the adapter" if adapter else "the whole model; as much is held free from the start"),
        ("models of earlier steps", earlier, f"trainer.save_models_at={cfg.trainer.save_models_at}"),
        ("checkpoints", most * one, words if written else "none: the run is shorter than trainer.save_steps"),
        ("best model", best, "weights of the best step, and of the one before"),
        ("cache", cache, "tokens and reference log-probs, shared by runs on the same data"),
    ]
    folder = Path(cfg.run.dir).expanduser().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Disk(
        tuple(part for part in parts if part[1]), model + earlier + most * one + best, model + earlier, cache,
        shutil.disk_usage(existing).free,
    )  # fmt: skip


def _tokens(pairs: TokenPairs) -> int:
    """Bytes of token ids."""
    return sum(side.ids.nbytes for side in (pairs.prompt, *pairs.answers))

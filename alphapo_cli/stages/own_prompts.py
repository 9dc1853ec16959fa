"""The prompts of a run's own held-out pairs, which `alphapo run` and `sweep` answer where no others are named.

They are those of the displacement probe: no pair of such a prompt is trained on.
"""

from __future__ import annotations

from dataclasses import replace

from alphapo_cli.config.schema import DataConfig, TrainConfig
from alphapo_cli.generation.prompt import Prompts, of_pairs
from alphapo_cli.stages.training.inputs import InputsBuilder
from alphapo_cli.stages.training.raw_pairs import load_text


def own_prompts(cfg: TrainConfig, limit: int | None) -> Prompts:
    """Read the held-out prompts of a run.

    Args:
        cfg: the run's configuration.
        limit: the most prompts; None for all.

    Returns:
        The distinct prompts, in the order of the probe.

    Raises:
        UsageError: data, model or tokenizer of the run cannot be used.
    """
    train, evaluation = load_text(cfg.data, cfg.probe)
    held_out = train if evaluation is None else evaluation
    # Which pairs are held out is decided among those that can be tokenised.
    index = InputsBuilder().model_and_data(cfg).data.probe.index
    pairs = [held_out.pairs[int(position)] for position in index]
    name = held_out.sources[0].name if len(held_out.sources) == 1 else "held_out"
    found = of_pairs(pairs, name, f"held-out prompts of {held_out.description}")
    return replace(found, rows=found.rows[:limit])


def data_of_prompts(settings: DataConfig, cfg: TrainConfig) -> DataConfig:
    """Generation's data settings with the sources that `own_prompts` reads, for its records."""
    data = cfg.data
    return replace(
        settings, source=data.source, path=data.path, name=data.name, config=data.config, data_dir=data.data_dir,
        revision=data.revision, split=data.split, eval_path=data.eval_path, eval_split=data.eval_split,
    )  # fmt: skip

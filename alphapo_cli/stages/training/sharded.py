"""Whether a run can be sharded, and how its models are loaded then: rank 0 opens the files, the others get shapes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.config.sharding import KEY, check_sharding_settings
from alphapo_cli.errors import UsageError, say
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.sharding import without_weights
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.heartbeat import at_work
from alphapo_cli.training.trainer import PreferenceTrainer


def check_sharding(cfg: TrainConfig, processes: Processes) -> None:
    """Check, before any model is loaded, that the settings go with sharding and with the number of processes.

    Raises:
        UsageError: they do not.
    """
    check_sharding_settings(cfg, processes.world, cuda=torch.cuda.is_available())
    if cfg.sharding.mode == "none":
        return
    if processes.world == 1:
        note = f"note: {KEY} with one process spreads nothing; start it with torchrun --nproc-per-node N"
        say(note, file=sys.stderr)
    elif processes.rank == 0 and cfg.model.path is None and cfg.model.source == "from_scratch":
        note = "note: the random weights of model=from_scratch are made whole in process 0, and spread from there"
        say(note, file=sys.stderr)


def check_model(lm: Any) -> None:
    """Check that a model has the decoder layers that are sharded one by one.

    Raises:
        UsageError: it has none.
    """
    inner = bare(lm)
    if not hasattr(inner.base_model, "layers"):
        raise UsageError(
            f"{KEY}: architecture '{inner.config.model_type}' has no list of layers that could be sharded; leave it out"
        )


def check_trainer(trainer: PreferenceTrainer) -> None:
    """Check that transformers.Trainer leaves a sharded policy as it is; a process alone is never wrapped.

    Raises:
        UsageError: this version would wrap it in DDP.
    """
    if trainer.policy.sharded is None or trainer.args.world_size == 1:
        return
    if not getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise UsageError(
            f"{KEY}: transformers {transformers.__version__} would wrap the shards of {trainer.args.world_size} processes "
            f"in DDP; pip install 'transformers>=5.19', or use one process"
        )


def loaded(processes: Processes, load: Callable[[], Any]) -> Any:
    """Load a model: where processes run it together, on rank 0, and its shapes alone elsewhere. Collective.

    Args:
        processes: the processes of the run.
        load: returns the model; its weights are in memory or, for processes that run it together, still in files.

    Returns:
        The model.
    """
    at_work("loading the model")
    if not processes.together:
        return load()
    whole: list[Any] = []

    def shapes() -> Any:
        whole.append(load())
        return without_weights(whole[0])

    blank = processes.first(shapes)
    return whole[0] if whole else blank

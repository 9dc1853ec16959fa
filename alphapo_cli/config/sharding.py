"""What sharding does not go with, as far as settings tell. Imports no torch: a sweep asks it of every cell as it begins."""

from __future__ import annotations

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError

KEY = "sharding.mode=fsdp"
# Those that are tested on shards. Adafactor fails on them, and 8-bit optimizers keep blocks that a shard would cut.
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")


def check_sharding_settings(cfg: TrainConfig, world: int | None, *, cuda: bool) -> None:
    """Check that the settings go with sharding and with the number of processes.

    Args:
        cfg: the run's configuration.
        world: processes that train; None: that is not known yet.
        cuda: whether they may have CUDA.

    Raises:
        UsageError: they do not.
    """
    sharding = cfg.sharding
    if sharding.mode == "none":
        for name, value, default in (
            ("shard_size", sharding.shard_size, None),
            ("cpu_offload", sharding.cpu_offload, False),
            ("reshard_after_forward", sharding.reshard_after_forward, True),
        ):
            if value != default:
                raise UsageError(f"sharding.{name}={value}: nothing is sharded while sharding.mode=none; add {KEY}")
        return
    if cfg.trainer.optim not in OPTIMIZERS:
        raise UsageError(
            f"{KEY}: trainer.optim={cfg.trainer.optim} is not known to work on shards (choices: {', '.join(OPTIMIZERS)})"
        )
    if cfg.model.merge:
        raise UsageError(
            f"{KEY}: model.merge=true needs the whole model in one process; leave it out, the adapter is saved"
        )
    if cfg.model.quantization != "none":
        raise UsageError(
            f"{KEY}: model.quantization={cfg.model.quantization} cannot be sharded, because a shard would cut the blocks "
            "that share a scale; leave one of the two out"
        )
    if sharding.cpu_offload and (cfg.trainer.use_cpu or not cuda):
        raise UsageError(
            "sharding.cpu_offload=true: without CUDA shards are in the host's memory already; leave it out"
        )
    if world is not None and sharding.shard_size is not None and world % sharding.shard_size:
        raise UsageError(
            f"sharding.shard_size={sharding.shard_size}: does not divide the {world} process(es) that share a model; take "
            f"a divisor of {world}, or leave it out"
        )

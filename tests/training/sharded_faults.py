"""A process of two, in one of which something goes wrong: `sharded_faults.py KIND FOLDER`; each writes what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from alphapo_cli.config.schema import ShardingConfig, TrainerConfig
from alphapo_cli.errors import AlphapoError, in_words
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import local_part, sharding_plan
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.exit import exit_with_threads
from alphapo_cli.training import guards
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.trainer import PreferenceTrainer
from tests import tiny


def fail(kind: str, processes: Processes, folder: Path) -> None:
    plan = sharding_plan(ShardingConfig(mode="fsdp"), torch.device("cpu"), False)
    policy = PolicyModel(tiny.model(), layout="packed").shard(plan)
    if kind in ("weights", "loss") and processes.rank == 1:
        shard = local_part(policy.lm.lm_head.weight)
        shard[-1, 0] = float("nan")
    if kind == "weights":
        guards.check_weights(policy.lm, 7, processes)
    elif kind == "loss":
        cfg = TrainerConfig(per_device_train_batch_size=2, use_cpu=True)
        pairs = tiny.token_pairs(8, scale=0.2)
        order = DataOrder.of(cfg, len(pairs), 2, 3)
        inputs = TrainingInputs(policy=policy, objective=tiny.objective(), pairs=pairs, pad_id=tiny.PAD)
        PreferenceTrainer(inputs, order, training_arguments(cfg, order, str(folder), 3)).train()
    elif processes.rank == 1:
        raise AlphapoError("the second process has no more room")
    else:
        torch.distributed.barrier()


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    state = PartialState(cpu=True)
    processes = Processes(state.process_index, state.num_processes, True)
    try:
        fail(kind, processes, folder)
    except Exception as error:
        (folder / f"said-{processes.rank}").write_text(in_words(processes.cause(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

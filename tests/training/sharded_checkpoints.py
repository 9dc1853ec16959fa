"""Processes that write a checkpoint together after three of five steps, or read it: `sharded_checkpoints.py write|read FOLDER`.

Those that write train on to the end, and then again from what they have written. Rank 0 leaves the weights of each end.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from alphapo_cli.config.schema import ShardingConfig, TrainerConfig
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import at_rest, sharding_plan, stored
from alphapo_cli.runs.checkpoints import Checkpoints, TrainingCheckpoint
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.exit import exit_with_threads
from alphapo_cli.storage.run_lock import RunLock, acquire
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.moving_reference import MovingReference
from alphapo_cli.training.trainer import PreferenceTrainer
from alphapo_cli.training.training_state import write
from tests import tiny

BEGUN_WITH = 2


class Saving(tiny.Logged):
    """Writes a checkpoint after three steps."""

    trainer: PreferenceTrainer

    def __init__(self, checkpoints: Checkpoints, lock: RunLock | None, processes: Processes) -> None:
        super().__init__()
        self.checkpoints, self.lock, self.processes = checkpoints, lock, processes

    def save(self, step: int, *, stopping: bool) -> None:
        if step == 3:
            state, shards = self.trainer.checkpoint(self.processes, cost={}, last_probe={}, stopped=None)
            self.checkpoints.save_together(state, self.lock, self.processes, lambda folder: write(shards, folder))


def train(
    processes: Processes, folder: Path, hooks: tiny.Logged, resumed: TrainingCheckpoint | None
) -> dict[str, torch.Tensor]:
    plan = sharding_plan(ShardingConfig(mode="fsdp"), torch.device("cpu"), False)
    policy = PolicyModel(tiny.model("llama tied", seed=4, spread=0.1), layout="packed").shard(plan)
    objective = tiny.objective("objective=tr_dpo", "objective.reference_every=2", "objective.reference_mix=0.5")
    cfg = TrainerConfig(
        per_device_train_batch_size=2, learning_rate=1e-3, warmup_ratio=0.0, adam_epsilon=1e-5, use_cpu=True, logging_steps=2
    )  # fmt: skip
    pairs = tiny.token_pairs(17, seed=1, scale=0.2)
    order = dataclasses.replace(DataOrder.of(cfg, len(pairs), BEGUN_WITH, 3), shared_by=processes.world)
    moving = MovingReference(policy, 2, 0.5)
    inputs = TrainingInputs(policy=policy, objective=objective, pairs=pairs, pad_id=tiny.PAD, moving=moving)
    trainer = PreferenceTrainer(
        inputs, order, training_arguments(cfg, order, str(folder / "trainer"), 3), hooks, logging_steps=2
    )
    if isinstance(hooks, Saving):
        hooks.trainer = trainer
    if resumed is not None:
        trainer.resume(resumed)
    trainer.train()
    at_rest(policy)
    end = stored((n, p) for n, p in policy.named_parameters())
    return {**end, **stored((f"reference {n}", p) for n, p in moving.weights())}


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    state = PartialState(cpu=True)
    processes = Processes(state.process_index, state.num_processes, "RANK" in os.environ)
    checkpoints = Checkpoints(folder / "checkpoints")
    ends: dict[str, Any] = {}
    if kind == "write":
        lock = acquire(folder / "lock") if processes.rank == 0 else None
        hooks = Saving(checkpoints, lock, processes)
        ends["undisturbed"] = train(processes, folder, hooks, None)
        ends["undisturbed rows"] = hooks.rows
        if lock is not None:
            lock.release()
    again = tiny.Logged()
    ends["resumed"] = train(processes, folder, again, processes.first(checkpoints.load))
    ends["resumed rows"] = again.rows
    if processes.rank == 0:
        torch.save(ends, folder / f"ends-{processes.world}.pt")
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

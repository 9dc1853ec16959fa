"""A process of those that train together: every case of a list, by the product's own policy, probe and trainer.

`python -m torch.distributed.run --standalone --nproc-per-node N sharded_worker.py FILE.json OUT.pt` trains sharded over N
processes, and without the launcher whole in one. Rank 0 writes what a run would record. FILE.json has a list of cases,
see `Case`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from alphapo_cli.config.schema import LoraConfig, ModelConfig, ShardingConfig, TrainConfig, TrainerConfig
from alphapo_cli.modeling.adapters import add_lora
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import at_rest, held_bytes, local_part, sharding_plan, stored, without_weights
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.scoring import score_pairs, score_tokens
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.exit import exit_with_threads
from alphapo_cli.stages.training.extra_models import running_reference
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.trainer import PreferenceTrainer
from tests import tiny

PAIRS, PROBE = 17, 5  # ragged: a last step of one pair; three batches of the probe
PER_STEP = 4


@dataclass(frozen=True)
class Case:
    name: str
    objective: str = "alphapo"
    rows: str = "pairs"
    overrides: list[str] = field(default_factory=list)  # of the objective
    family: str = "llama"
    layout: str = "packed"
    trainer: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1  # micro-batches of a process and step
    lora: int | None = None
    chunk_bytes: int = 64 << 20
    sharding: dict[str, Any] = field(default_factory=dict)


def _policy(lm: Any, case: Case, plan: Any, rank: int) -> PolicyModel:
    bf16 = bool(case.trainer.get("bf16"))
    policy = PolicyModel(lm, layout=case.layout, chunk_bytes=case.chunk_bytes, bf16=bf16)
    if plan is None:
        return policy
    return (policy if rank == 0 else without_weights(policy)).shard(plan)


def run(case: Case, processes: Processes) -> dict[str, Any]:
    """Train; what can be compared with other numbers of processes."""
    from tests import every_objective  # it builds every objective: not where tests are collected

    sharded = "RANK" in os.environ
    cfg = TrainerConfig(
        **{
            "per_device_train_batch_size": PER_STEP // processes.world // case.accumulation,
            "gradient_accumulation_steps": case.accumulation,
            "learning_rate": 1e-3, "warmup_ratio": 0.0, "adam_epsilon": 1e-5, "use_cpu": True, **case.trainer,
        }
    )  # fmt: skip
    if not sharded:
        cfg.gradient_accumulation_steps = PER_STEP // cfg.per_device_train_batch_size
    plan = (
        sharding_plan(ShardingConfig(mode="fsdp", **case.sharding), torch.device("cpu"), cfg.bf16) if sharded else None
    )
    objective = tiny.objective(f"objective={case.objective}", *case.overrides)
    lm = tiny.model(case.family, seed=4, spread=0.1)
    other, guide = tiny.perturbed(lm, seed=1), tiny.perturbed(lm, seed=2)
    pairs = tiny.token_pairs(PAIRS + PROBE, seed=1, scale=0.3)
    data = every_objective.data_of(objective, case.rows, pairs)
    train, probe = (
        every_objective.guided(lm, objective, data.select(part)) for part in (range(PAIRS), range(PAIRS, PAIRS + PROBE))
    )
    expected_hash = state_hash(other)
    if case.lora is not None:
        lm = add_lora(lm, ModelConfig(lora=LoraConfig(r=case.lora)), 0)
    policy = _policy(lm, case, plan, processes.rank)
    reference = _policy(other, case, plan, processes.rank).requires_grad_(False)
    hashes = [state_hash(reference.lm), expected_hash if case.layout == "padded" else None]
    order = DataOrder.of(cfg, PAIRS, processes.world, 3)
    sums: list[Any] = [None, None]
    if objective.needs_reference:
        sums = [
            score_pairs(reference, part, batch_size=2, pad_id=tiny.PAD, processes=processes, objective=objective)
            for part in (train, probe)
        ]
    of_guide = score_tokens(
        _policy(guide, case, plan, processes.rank), probe, batch_size=2, pad_id=tiny.PAD, processes=processes, sides=2
    )

    class Builder:
        def reference_policy(self, *_: Any) -> PolicyModel:
            return policy if case.lora is not None else reference

    builder: Any = Builder()
    moving, kl_from = running_reference(TrainConfig(), builder, policy, objective, order.total_steps, lambda _: None)
    measured = Probe(
        policy, objective, probe, batch_size=2, pad_id=tiny.PAD, processes=processes, reference=sums[1], kl_from=kl_from
    )
    inputs = TrainingInputs(
        policy=policy,
        objective=objective,
        pairs=train,
        pad_id=tiny.PAD,
        reference=sums[0],
        moving=moving,
        kl_from=kl_from,
    )
    hooks = tiny.Logged()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(inputs, order, training_arguments(cfg, order, folder, 3), hooks)
        trainer.train()
    after = measured.measure(policy, trainer.context)
    at_rest(policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    moments = [v for s in trainer.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.dim()]
    return {
        "rows": hooks.rows,
        "weights": stored((n, p) for n, p in policy.named_parameters() if p.requires_grad),
        "reference": sums,
        "guide": of_guide,
        "moving": None if moving is None else stored(moving.weights()),
        "probe": {name: getattr(after, name) for name in ("sums", "entropy", "kl", "losses") if hasattr(after, name)},
        "hashes": hashes,
        "bytes": held_bytes(policy) + sum(local_part(m).nbytes for m in moments) + sum(local_part(p).nbytes for p in trained),
        "wrapped": type(trainer.model_wrapped).__name__,
    }  # fmt: skip


def main() -> None:
    cases = [Case(**one) for one in json.loads(Path(sys.argv[1]).read_text())]
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    processes = Processes(state.process_index, state.num_processes, "RANK" in os.environ)
    results = {}
    for case in cases:
        try:
            results[case.name] = run(case, processes)
        except Exception as error:
            raise RuntimeError(f"case {case.name}") from error
        if processes.rank == 0:
            torch.save(results, sys.argv[2])
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

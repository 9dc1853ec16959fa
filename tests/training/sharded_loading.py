"""A process of two that load a model to share it: `sharded_loading.py FOLDER` leaves the bytes of tensors at the most."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alphapo_cli.config.schema import ModelConfig, ShardingConfig
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.locations import locate
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import held_bytes, sharding_plan
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.exit import exit_with_threads
from alphapo_cli.stages.training.sharded import loaded


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def main() -> None:
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    processes = Processes(state.process_index, state.num_processes, True)
    plan = sharding_plan(ShardingConfig(mode="fsdp"), torch.device("cpu"), False)
    with Live() as live:
        source = locate(str(folder / "model"))
        policy = PolicyModel(loaded(processes, lambda: load_model(source, ModelConfig())), layout="packed").shard(plan)
    found = {"most": live.most, "held": held_bytes(policy), "hash": state_hash(policy.lm)}
    (folder / f"loaded-{processes.rank}.json").write_text(json.dumps(found))
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

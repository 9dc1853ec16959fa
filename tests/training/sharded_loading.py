"""A process of two that load models to share them: `sharded_loading.py FOLDER NAME...`, each a directory in FOLDER.

What it held at the most while each was loaded, and how its shards compare with the model loaded whole, goes to
loaded-RANK.json; a model that cannot be loaded leaves its error there. BREAK-NAME in FOLDER is a file of weights that is
cut in half on rank 0 once the model has been opened.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alphapo_cli.config.schema import ModelConfig, ShardingConfig
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.deferred import Deferred, held_whole
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.locations import locate
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import gathered, held_bytes, local_part, sharding_plan
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.exit import exit_with_threads
from alphapo_cli.stages.training.sharded import loaded


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once: those that operations return, and those they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor | Deferred) and tensor.is_cpu:
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


def measured(folder: Path, processes: Processes, plan: Any) -> dict[str, Any]:
    """Load a model in the way of a training, and count."""
    source, cfg = locate(str(folder)), ModelConfig()
    before = psutil.Process().memory_info().rss
    with Live() as live:
        lm = loaded(processes, lambda: load_model(source, cfg, in_files=True))
        in_memory = held_whole(lm) if processes.rank == 0 else []
        broken = folder.parent / f"BREAK-{folder.name}"
        if broken.is_file() and processes.rank == 0:
            file = Path(broken.read_text())
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        policy = PolicyModel(lm, layout="packed").shard(plan)
        del lm
    found = {"most": live.most, "held": held_bytes(policy), "in memory": in_memory}
    found["resident"] = psutil.Process().memory_info().rss - before
    whole = load_model(source, cfg)
    same = {name: torch.equal(gathered(p), q) for (name, p), (_, q) in _pairs(policy, whole)}
    found["others"] = [name for name, equal in same.items() if not equal]
    found["buffers"] = [
        n
        for (n, b), (_, c) in zip(policy.lm.named_buffers(), whole.named_buffers(), strict=True)
        if not torch.equal(b, c)
    ]
    found["settings"] = [
        policy.lm.generation_config.to_dict() == whole.generation_config.to_dict(),
        {str(p.dtype) for p in policy.parameters()} == {str(p.dtype) for p in whole.parameters()},
    ]
    found["finite"] = all(bool(local_part(p).isfinite().all()) for p in policy.parameters())
    found["hashes"] = [state_hash(policy.lm), state_hash(PolicyModel(whole, layout="packed").lm)]
    return found


def _pairs(policy: PolicyModel, whole: Any) -> Any:
    return zip(policy.lm.named_parameters(), whole.named_parameters(), strict=True)


def main() -> None:
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    processes = Processes(state.process_index, state.num_processes, True)
    plan = sharding_plan(ShardingConfig(mode="fsdp"), torch.device("cpu"), False)
    results: dict[str, Any] = {}
    for name in sys.argv[2:]:
        try:
            results[name] = measured(folder / name, processes, plan)
        except AlphapoError as error:
            results[name] = {"error": str(error)}
    (folder / f"loaded-{processes.rank}.json").write_text(json.dumps(results))
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

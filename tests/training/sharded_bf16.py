"""Two processes in bfloat16, each beside the whole model: `sharded_bf16.py FOLDER` leaves how far they are apart.

The weights are numbers of bfloat16, so that what is gathered in it is not rounded; their shards are float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.autograd.graph import saved_tensors_hooks

from alphapo_cli.config.schema import ShardingConfig
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import gathered, sharding_plan
from alphapo_cli.runtime.exit import exit_with_threads
from tests import tiny


def main() -> None:
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    lm = tiny.model("llama tied", seed=4, spread=0.1)
    with torch.no_grad():
        for p in lm.parameters():
            p.copy_(p.bfloat16().float())
    whole = PolicyModel(lm, layout="packed", bf16=True, chunk_bytes=4096)
    plan = sharding_plan(ShardingConfig(mode="fsdp"), torch.device("cpu"), True)
    ours = whole.shard(plan)
    batch = whole.layout.collate(list(tiny.token_pairs(6, seed=1, scale=0.3)), pad_id=tiny.PAD)
    shapes = {tuple(p.shape) for p in lm.parameters() if p.dim() == 2}
    kept: list[Any] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tuple(tensor.shape), tensor.untyped_storage()))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = ours(batch).logps
    # What a layer gathered is freed by now; embedding, norm and output layer stay, and are the model's own.
    root = {p.untyped_storage().data_ptr() for p in ours.parameters() if type(p) is torch.nn.Parameter}
    copies = sorted(
        {s for s, u in kept if (s in shapes or s[::-1] in shapes) and u.nbytes() and u.data_ptr() not in root}
    )
    expected = whole(batch).logps
    logps.sum().backward()
    expected.sum().backward()
    apart = {}
    for (name, p), q in zip(ours.named_parameters(), whole.parameters(), strict=True):
        apart[name] = tiny.relative_error(gathered(p.grad), q.grad)
    found = {
        "logps": tiny.relative_error(logps.detach(), expected.detach()),
        "gradients": apart,
        "copies": copies,
        "dtypes": sorted({str(gathered(p).dtype) + str(p.grad.dtype) for p in ours.parameters()}),
    }
    (folder / f"bf16-{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
    exit_with_threads(0)  # as the command does

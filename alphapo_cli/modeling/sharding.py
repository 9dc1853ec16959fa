"""Models whose weights are spread over processes: torch's `fully_shard` (FSDP2, arXiv:2304.11277).

Each decoder layer is a unit that is gathered when it runs; embedding, last norm and output layer belong to the root, the
transformers model itself. So tied weights are in one unit. All that reads the root's weights outside the model's own
forward (our output layer, the probe) runs through `within`.
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from alphapo_cli.config.schema import ShardingConfig
from alphapo_cli.errors import AlphapoError, in_words
from alphapo_cli.modeling.deferred import read_once

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
_SENT = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes in which weights are sent


@dataclass(frozen=True)
class ShardingPlan:
    """How the models of a run are sharded."""

    mesh: DeviceMesh  # ("shard",), or ("replicate", "shard")
    device: torch.device  # on which the models run
    cfg: ShardingConfig
    bf16: (
        bool  # whether weights are gathered in bfloat16; shards and the reduction of gradients stay in their own dtype
    )


def sharding_plan(cfg: ShardingConfig, device: torch.device, bf16: bool) -> ShardingPlan:
    """Make the mesh of all processes; a process alone gets a group of its own. Collective.

    Args:
        cfg: `mode` is fsdp; `shard_size` divides the number of processes.
        device: the device of this process.
        bf16: whether matrix products run in bfloat16.

    Returns:
        The plan.
    """
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    world = dist.get_world_size()
    if cfg.shard_size is None or cfg.shard_size == world:
        mesh = init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    else:
        sizes = (world // cfg.shard_size, cfg.shard_size)
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    return ShardingPlan(mesh, device, cfg, bf16)


def without_weights(model: M) -> M:
    """Copy a model that is not sharded, with its parameters on the meta device (shapes without memory)."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def shared_copy(model: M, *, every: bool = False) -> M:
    """Copy a model; the copy shares the weights that are frozen while others train, or `every` weight."""
    frozen = [p for p in model.parameters() if every or not p.requires_grad]
    if not every and len(frozen) == len(list(model.parameters())):
        frozen = []
    memo: dict[int, Any] = {id(p): p for p in frozen}
    return copy.deepcopy(model, memo)


def shard(lm: Any, plan: ShardingPlan) -> None:
    """Shard a transformers model without weights (see `without_weights`), in place; its shards have no content yet.

    Raises:
        AlphapoError: a parameter is left that every process would hold whole.
    """
    cfg = plan.cfg
    offload = CPUOffloadPolicy(pin_memory=True) if cfg.cpu_offload else OffloadPolicy()
    # Inputs keep their dtype: under autocast the residual stream is float32, as in one process.
    mixed = MixedPrecisionPolicy(torch.bfloat16 if plan.bf16 else None, torch.float32, cast_forward_inputs=False)
    for layer in lm.base_model.layers:
        fully_shard(
            layer, mesh=plan.mesh, mp_policy=mixed, offload_policy=offload,
            reshard_after_forward=cfg.reshard_after_forward,
        )  # fmt: skip
    # The backward pass begins with the root's output layer: it stays whole after the forward pass.
    fully_shard(lm, mesh=plan.mesh, mp_policy=mixed, offload_policy=offload, reshard_after_forward=False)
    if plan.bf16:
        lm.get_input_embeddings().register_forward_hook(_in_float32)
    lm.run_within = types.MethodType(_run_within, lm)
    register_fsdp_forward_method(lm, "run_within")
    whole = [name for name, p in lm.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise AlphapoError(f"sharding.mode=fsdp: {len(whole)} parameters are not sharded, first {whole[0]}")
    at = torch.device("cpu") if cfg.cpu_offload else plan.device
    # Not to_empty, which would empty buffers (rotary frequencies) as well.
    lm._apply(lambda t: torch.empty_like(t, device=at) if t.is_meta else t.to(plan.device))


def _in_float32(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.float()


def _run_within(self: Any, run: Callable[[], T]) -> T:
    return run()


def is_sharded(lm: Any) -> bool:
    """Whether a bare transformers model is sharded."""
    return isinstance(lm, FSDPModule)


def within(lm: Any, run: Callable[[], T]) -> T:
    """Call `run`, which reads weights outside the layers of the bare model `lm`, while those are whole. Collective."""
    return lm.run_within(run) if is_sharded(lm) else run()


def at_rest(model: nn.Module) -> None:
    """Let go of weights that a forward pass has gathered: only shards are left, and an optimizer's step is seen."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def fill(model: nn.Module, source: nn.Module | None) -> None:
    """Fill the shards of `model` with the weights of `source` on rank 0, None elsewhere, one tensor at a time.

    Collective. The parameters of both have the same order. No process holds more than its shards and one tensor, if the
    weights of `source` are in files. Rank 0 alone reads them: so no rank can have other files than another, each is read
    once, whatever the number of processes, and what cannot be read is found out in one place. A weight is sent in the
    dtype of its file, and becomes one of the model's where it is cut to a shard.

    Raises:
        AlphapoError: a weight cannot be read.
    """
    given = None if source is None else iter(source.parameters())
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        whole = _sent(parameter, None if given is None else next(given))
        _local(parameter).copy_(_local(sharded_like(whole, parameter)))


def _sent(like: DTensor, given: Tensor | None) -> Tensor:
    """A weight of the shape of `like`, whole, as rank 0 gives it; see `fill`."""
    device = like.device_mesh.device_type
    whole, fault = None, None
    if given is not None:
        try:
            whole = read_once(given)
            whole = whole.to(device=device, dtype=whole.dtype if whole.dtype in _SENT else like.dtype).contiguous()
        except Exception as error:
            fault = error
    kind = torch.tensor(-1 if whole is None else _SENT.index(whole.dtype), device=device)
    dist.broadcast(kind, 0)
    if kind < 0:
        words = [None if fault is None else in_words(fault)]
        dist.broadcast_object_list(words, src=0)
        raise fault or AlphapoError(str(words[0]))
    if whole is None:
        whole = torch.empty(like.shape, dtype=_SENT[int(kind)], device=device)
    dist.broadcast(whole, 0)
    return whole


@torch.no_grad()
def fill_from_shards(model: nn.Module, source: nn.Module) -> None:
    """Fill the shards of `model` with those of `source`, a model sharded by the same plan; nothing is sent."""
    at_rest(source)
    for ours, theirs in zip(model.parameters(), source.parameters(), strict=True):
        _local(ours).copy_(_local(theirs))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: its shard, or all of one that is not sharded."""
    return _local(tensor.detach())


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor, which every process has whole, as `like` is; `whole` itself where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensor: Tensor) -> Tensor:
    """A whole tensor from its shards, or the tensor itself. Collective."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def stored(tensors: Iterable[tuple[str, Tensor]], *, keep: bool = True) -> dict[str, Tensor]:
    """Copy tensors to the CPU, whole; where they are not kept, this process only helps the others to gather theirs."""
    copies = {}
    for name, tensor in tensors:
        whole = gathered(tensor)
        if keep:
            copies[name] = whole.cpu().clone()
    return copies


def whole_copy(module: nn.Module) -> nn.Module:
    """Copy a module at rest that is no unit of its own, with whole weights that do not train. Collective."""
    memo: dict[int, Any] = {id(p): nn.Parameter(gathered(p).clone(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def held_bytes(model: nn.Module) -> int:
    """Bytes of parameters that this process holds."""
    return sum(math.prod(_local(p).shape) * p.element_size() for p in model.parameters())

"""Weights and optimizer state of a policy in training as whole tensors, and back into the shards that processes hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import at_rest, sharded_like, stored


def trained_tensors(policy: PolicyModel) -> list[tuple[str, Tensor]]:
    """Parameters that train, and buffers; frozen weights are not stored, they are loaded from their source."""
    at_rest(policy)
    frozen = {name for name, p in policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
    seen: set[int] = set()
    tensors = []
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if name not in frozen and id(tensor) not in seen:  # tied weights once
            seen.add(id(tensor))
            tensors.append((name, tensor))
    return tensors


@torch.no_grad()
def load_tensors(policy: PolicyModel, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into `trained_tensors`."""
    for name, tensor in trained_tensors(policy):
        tensor.copy_(sharded_like(weights[name], tensor))


def optimizer_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimizer's state with whole tensors on the CPU; empty unless `keep`. Collective."""
    state: dict[str, Any] = optimizer.state_dict()
    moments = {}
    for key, one in state["state"].items():
        whole = stored(((name, v) for name, v in one.items() if isinstance(v, Tensor)), keep=keep)
        moments[key] = {name: whole.get(name, value) for name, value in one.items()}
    return {**state, "state": moments} if keep else {}


def sharded_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of whole tensors, each sharded as the parameter of `optimizer` that it belongs to."""
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    moments = {
        n: {
            name: sharded_like(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
            for name, value in state["state"][n].items()
        }
        for n, p in zip(numbers, ours, strict=True)
        if n in state["state"]
    }
    return {**state, "state": moments}

"""A gated MLP that keeps two tensors of its inner width for the backward pass instead of four.

`down(act(gate(x)) * up(x))` leaves behind gate(x), act(gate(x)), up(x) and their product. Activation and product are cheap
to make again from the other two; their matrix products are not made again. Same numbers, to the bit.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def lean(mlp: nn.Module) -> None:
    """Let `mlp`, with gate_proj, up_proj, down_proj and act_fn, keep less from now on."""
    mlp.forward = types.MethodType(_forward, mlp)


def restore(mlp: nn.Module) -> None:
    """Its class's own forward again. Under gradient checkpointing there is nothing to save, only more to make again."""
    mlp.__dict__.pop("forward", None)


def _forward(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    gate, up = self.gate_proj(x), self.up_proj(x)
    known_gate, known_up = gate.detach(), up.detach()
    active = self.act_fn(gate)
    with _made_again(active, lambda: self.act_fn(known_gate)):
        product = active * up
    with _made_again(product, lambda: self.act_fn(known_gate) * known_up):
        return self.down_proj(product)  # type: ignore[no-any-return]


def _made_again(tensor: Tensor, make: Callable[[], Tensor]) -> saved_tensors_hooks:
    """A context in which functions that would keep `tensor`, or a view of all of it, call `make` in the backward pass."""
    place, size = tensor.data_ptr(), tensor.numel()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.data_ptr() == place and kept.numel() == size else kept

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return make().view(packed)

    return saved_tensors_hooks(pack, unpack)

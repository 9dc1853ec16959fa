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
    active = self.act_fn(gate)
    again = _Again(self.act_fn, gate.detach(), up.detach())
    with _made_again(active, again.active):
        product = active * up
    with _made_again(product, again.product):
        return self.down_proj(product)  # type: ignore[no-any-return]


class _Again:
    """What is made again. The backward pass asks for the product first, and for the activation right after it."""

    def __init__(self, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> None:
        self.act, self.gate, self.up = act, gate, up
        self.made: Tensor | None = None

    def product(self) -> Tensor:
        self.made = self.act(self.gate)
        return self.made * self.up

    def active(self) -> Tensor:
        made, self.made = self.made, None
        return self.act(self.gate) if made is None else made


def _made_again(tensor: Tensor, make: Callable[[], Tensor]) -> saved_tensors_hooks:
    """A context in which functions that would keep `tensor`, or a view of all of it, call `make` in the backward pass."""
    place, size = tensor.data_ptr(), tensor.numel()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        # A transposed view begins at the same place, too; it could not be made again from its shape alone.
        same = kept.data_ptr() == place and kept.numel() == size and kept.is_contiguous()
        return kept.shape if same else kept

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return make().view(packed)

    return saved_tensors_hooks(pack, unpack)

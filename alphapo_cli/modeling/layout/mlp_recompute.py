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
    again = _Again(self.act_fn, gate.detach(), up.detach())
    active = self.act_fn(gate)
    with _made_again(active, again.active):
        product = active * up
    with _made_again(product, again.product):
        return self.down_proj(product)  # type: ignore[no-any-return]


class _Kept:
    """A tensor that waits for the backward pass. Autograd sees to it that it is still the same, but not under hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> Tensor:
        """Raises RuntimeError: it was written to meanwhile."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {list(self.tensor.shape)} that the backward pass of an MLP needs was modified in place after "
                "its forward pass"
            )
        return self.tensor


class _Again:
    """What is made again, as it was made: under the autocast of the forward pass, which the backward pass is not under.

    The backward pass asks for the product first, and for the activation right after it.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> None:
        self.act, self.gate, self.up = act, _Kept(gate), _Kept(up)
        self.made: Tensor | None = None
        device = gate.device.type
        self.device, self.narrow = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def product(self) -> Tensor:
        with self._as_before():
            self.made = self.act(self.gate.get())
            return self.made * self.up.get()

    def active(self) -> Tensor:
        made, self.made = self.made, None
        if made is not None:
            return made
        with self._as_before():
            return self.act(self.gate.get())

    def _as_before(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.narrow)


def _made_again(tensor: Tensor, make: Callable[[], Tensor]) -> saved_tensors_hooks:
    """A context in which functions that would keep `tensor`, or a view of all of it, call `make` in the backward pass."""
    place, size = tensor.data_ptr(), tensor.numel()
    plain = tensor.is_contiguous()

    def pack(kept: Tensor) -> _Kept | torch.Size:
        # A transposed view begins at the same place, too; it could not be made again from its shape alone.
        same = plain and kept.data_ptr() == place and kept.numel() == size and kept.is_contiguous()
        return kept.shape if same else _Kept(kept)

    def unpack(packed: _Kept | torch.Size) -> Tensor:
        if isinstance(packed, _Kept):
            return packed.get()
        with torch.no_grad():
            return make().view(packed)

    return saved_tensors_hooks(pack, unpack)

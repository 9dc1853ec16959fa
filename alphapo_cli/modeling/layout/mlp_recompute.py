"""A gated MLP that keeps two tensors of its inner width for the backward pass instead of four.

`down(act(gate(x)) * up(x))` would keep gate(x), act(gate(x)), up(x) and their product. Activation and product are
elementwise, so they are recomputed from the other two; matrix products are not. The numbers are the same, to the bit.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from alphapo_cli.modeling.layout.numbers import has_numbers


def lean(mlp: nn.Module) -> None:
    """Patch `mlp`, which has gate_proj, up_proj, down_proj and act_fn, to recompute activation and product."""
    mlp.forward = types.MethodType(_forward, mlp)


def is_gated(mlp: Any) -> bool:
    """Whether `mlp` computes down_proj(act_fn(gate_proj(x)) * up_proj(x)), tried on a few numbers."""
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    weight = getattr(mlp.gate_proj, "weight", None)
    if weight is None or weight.is_meta:  # it cannot be tried, and a plain MLP is always right
        return False
    if not has_numbers(weight):
        mlp, weight = _small(mlp)
    x = torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype).view(1, 2, -1)
    mode = mlp.training
    mlp.eval()
    try:
        with torch.enable_grad():
            own, ours = type(mlp).forward(mlp, x), _forward(mlp, x)
        return isinstance(own, Tensor) and torch.equal(own, ours)
    except Exception:  # another signature
        return False
    finally:
        mlp.train(mode)


def _small(mlp: Any) -> tuple[Any, Tensor]:
    """(a copy of an MLP without numbers whose matrices are small and have some, its first matrix)."""
    small = copy.copy(mlp)
    small._modules = dict(mlp._modules)
    for name, (inner, outer) in {"gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}.items():
        setattr(small, name, nn.Linear(inner, outer, bias=getattr(mlp, name).bias is not None))
    return small, small.gate_proj.weight


def restore(mlp: nn.Module) -> None:
    """Undo `lean`. Under gradient checkpointing it would save no memory, only recompute more."""
    mlp.__dict__.pop("forward", None)


def _forward(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    gate, up = self.gate_proj(x), self.up_proj(x)
    recompute = _Recompute(self.act_fn, gate.detach(), up.detach())
    active = self.act_fn(gate)
    with _recomputed_in_backward(active, recompute.active):
        product = active * up
    with _recomputed_in_backward(product, recompute.product):
        return self.down_proj(product)  # type: ignore[no-any-return]


class _SavedTensor:
    """A tensor kept for the backward pass. Under hooks, autograd does not check that it is unchanged; this does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: it was modified in place after the forward pass.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {list(self.tensor.shape)} that the backward pass of an MLP needs was modified in place after "
                "its forward pass"
            )
        return self.tensor


class _Recompute:
    """Activation and product, recomputed under the autocast of the forward pass, which the backward pass is not under.

    The backward pass asks for the product first and for the activation right after it.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> None:
        self.act, self.gate, self.up = act, _SavedTensor(gate), _SavedTensor(up)
        self.activation: Tensor | None = None
        device = gate.device.type
        self.device, self.autocast = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def product(self) -> Tensor:
        with self._forward_autocast():
            self.activation = self.act(self.gate.get())
            return self.activation * self.up.get()

    def active(self) -> Tensor:
        activation, self.activation = self.activation, None
        if activation is not None:
            return activation
        with self._forward_autocast():
            return self.act(self.gate.get())

    def _forward_autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.autocast)


def _recomputed_in_backward(tensor: Tensor, compute: Callable[[], Tensor]) -> saved_tensors_hooks:
    """A context in which autograd recomputes `tensor`, or a full view of it, by `compute` instead of saving it."""
    address, size = _address(tensor), tensor.numel()
    contiguous = tensor.is_contiguous()

    def pack(kept: Tensor) -> _SavedTensor | torch.Size:
        # A transposed view has the same address, too, but its shape alone does not tell how to recompute it.
        same = contiguous and _address(kept) == address and kept.numel() == size and kept.is_contiguous()
        return kept.shape if same else _SavedTensor(kept)

    def unpack(packed: _SavedTensor | torch.Size) -> Tensor:
        if isinstance(packed, _SavedTensor):
            return packed.get()
        with torch.no_grad():
            return compute().view(packed)

    return saved_tensors_hooks(pack, unpack)


def _address(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor's memory from that of others alive: its storage and where it begins there.

    Not its pointer, which a tensor without numbers (of a skeleton, see `stages/estimate`) does not have.

    Returns:
        (the storage, the first element in it).
    """
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())

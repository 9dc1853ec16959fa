"""Products of a mixture of experts on tensors without numbers, whose shapes do not depend on who is sent where.

transformers multiplies the tokens of all experts in one grouped product. torch's own stand-in of that operation takes
bfloat16 alone, although its kernels take float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode


class GroupedProducts(TorchDispatchMode):
    """Gives grouped products of tensors without numbers the shapes that they would have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or make what a grouped product would return."""
        if func is torch.ops.aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            return _product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """A blank for the product of `a` and `b`, of which one or both are cut into groups, or have one matrix a group.

    Args:
        a: [S, K] whose rows, or [M, S] whose columns are grouped; or [E, M, K].
        b: [E, K, N], or [S, N].
        offs: [E], where the groups end.
        bias: not used.
        out_dtype: of the result; None: that of `a`.

    Returns:
        [S, N]; [E, M, N] where both are matrices or neither is; [M, S] where `b` alone is one.
    """
    if a.dim() == b.dim():
        groups = [a.size(0)] if a.dim() == 3 else [] if offs is None else [offs.size(0)]
    else:
        groups = []
    return a.new_empty([*groups, a.size(-2), b.size(-1)], dtype=out_dtype or a.dtype)

"""Quantised layers without numbers: their bytes, and a pass that makes whole weights of them as the real ones do."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from alphapo_cli.modeling.quantisation import product

_BLOCK, _NESTED = 64, 256  # NF4: weights that share a scale of 8 bits, and scales that share one of 32
_CODES = 4 * (16 + 256)  # bytes of the two tables of values that each layer keeps


class QuantisedStandIn(nn.Linear):
    """A linear layer whose weights are as many bytes as bitsandbytes keeps."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        """Take the place of a layer of the meta device.

        Args:
            layer: the layer.
            kind: nf4 or int8.
        """
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        count = packed_bytes(layer.out_features, layer.in_features, kind)
        self.weight = nn.Parameter(torch.empty(count, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by weights that are made in this pass, and again in the backward one."""
        return product(x, functools.partial(_made, self), self.bias)


def _made(layer: QuantisedStandIn, dtype: torch.dtype) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=layer.weight.device)


def packed_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes of a quantised matrix with its scales."""
    count = rows * columns
    if kind == "int8":
        return count + 4 * rows
    scales = math.ceil(count / _BLOCK)
    return math.ceil(count / 2) + scales + 4 * math.ceil(scales / _NESTED) + 4 + _CODES


def quantise(lm: Any, kind: str) -> None:
    """Replace the layers of a model of the meta device that transformers would quantise: all linear ones but the head."""
    head = lm.get_output_embeddings()
    for name, module in list(lm.named_modules()):
        if type(module) is nn.Linear and module is not head:
            lm.set_submodule(name, QuantisedStandIn(module, kind))
    lm.requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, of quantised matrices that of their elements."""
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantisedStandIn)}
    return sum(packed.get(id(p), p.numel()) for p in model.parameters())

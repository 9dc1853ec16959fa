"""Frozen bases in 4 or 8 bits: bitsandbytes' NF4 (QLoRA, arXiv:2305.14314) and the weights of its int8 (arXiv:2208.07339).

transformers loads and bitsandbytes packs the weights. Every product is that of the dequantised weights, in the compute
dtype: in training and in evaluation, on every device. bitsandbytes' own passes are not used, because they are not one
function. On CPUs with AVX512-BF16 its NF4 layers round their scales to bfloat16 for good at the first evaluation, and
multiply without gradients from then on; its int8 layers round activations in evaluation only (on a CPU), by outliers that
are looked for over the whole batch, so that an answer's log-prob would depend on what else is in it.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alphapo_cli.errors import missing_extra
from alphapo_cli.modeling.adapters import merged
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.sharding import shared_copy

NONE = "none"
_PACKAGE, _EXTRA = "bitsandbytes", "quant"
_LEVELS = 127  # of int8: a row's largest weight
_UNPACKED = (torch.float32, torch.bfloat16, torch.float16)  # dtypes to which bitsandbytes unpacks 4 bits


def check_installed() -> None:
    """Check that bitsandbytes is there, without importing it.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        error = missing_extra(_PACKAGE, _EXTRA)
        raise error


def _bitsandbytes() -> Any:
    """The package, without its advice at import, which is about passes that are not used here."""
    check_installed()
    logging.getLogger(_PACKAGE).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def loading(kind: str, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """What transformers' `from_pretrained` is given to quantise a model's linear layers, all but the output layer.

    Args:
        kind: nf4, with double quantisation (of the scales), or int8.
        dtype: of all other weights, and in which the layers compute.
        device: where the model is put, tensor by tensor.

    Returns:
        Its arguments.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    _bitsandbytes()
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return {"quantization_config": config, "device_map": {"": device}}


def freeze(lm: Any) -> None:
    """Freeze a quantised model, and let its layers multiply by their dequantised weights (see the module)."""
    lm.requires_grad_(False)
    for layer in quantised_layers(lm).values():
        layer.forward = types.MethodType(_forward, layer)
        if hasattr(layer.weight, "CB"):
            layer.weight.CB = None  # the same tensor as its data, of which a copy of the model would have a second one


def quantised_layers(lm: Any) -> dict[str, Any]:
    """The quantised layers of a bare model by name, without the adapters around them."""
    package = sys.modules.get(_PACKAGE)
    if package is None:  # nothing can be quantised
        return {}
    kinds = (package.nn.Linear4bit, package.nn.Linear8bitLt)
    return {name: module for name, module in lm.named_modules() if isinstance(module, kinds)}


def quantisation_of(lm: Any) -> str:
    """How the layers of a model, bare or in a peft wrapper, are quantised: none, nf4 or int8."""
    layer = next(iter(quantised_layers(bare(lm)).values()), None)
    if layer is None:
        return NONE
    return str(getattr(layer.weight, "quant_type", "int8"))


def dequantised(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weights of a quantised layer, [out, in], computed in float32 and rounded once to `dtype`."""
    weight = layer.weight
    if not hasattr(weight, "quant_state"):
        whole: Tensor = weight.data.to(dtype).mul_((weight.SCB / _LEVELS).unsqueeze(1))
        return whole
    state = copy.copy(weight.quant_state)
    rows, columns = state.shape
    state.dtype = dtype if dtype in _UNPACKED else torch.float32
    if columns % state.blocksize:  # blocks go on from row to row, and bitsandbytes' kernel for CPUs begins each anew
        state.shape = torch.Size((rows * columns,))
    made: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, state)
    return made.reshape(rows, columns).to(dtype)


def product(x: Tensor, weights: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
    """X W^T + b, [..., out], for weights that are made anew in each pass and of which nothing is kept.

    Args:
        x: [..., in]; under autocast it is cast as a linear layer casts it.
        weights: returns W, [out, in], in a dtype.
        bias: b, [out], frozen; None: none.

    Returns:
        The product, in the dtype of x or of autocast; its gradient is that of x alone.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    made: Tensor = _Product.apply(x.to(dtype), weights, bias)  # type: ignore[no-untyped-call]
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weights = weights
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x, weights(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grad.device.type, enabled=False):
            return grad @ ctx.weights(grad.dtype), None, None


def _forward(self: Any, x: Tensor) -> Tensor:
    return product(x, functools.partial(dequantised, self), self.bias)


def dequantised_model(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Make a whole model in floating point of a quantised one: dequantise, add the adapters in float32, round once.

    Args:
        model: bare or in a peft wrapper; it stays as it is.
        dtype: of the layers that were quantised; None: that of the others.

    Returns:
        A bare transformers model that nothing tells from one that never was quantised.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    made = shared_copy(model, every=True)
    inner = bare(made)
    dtype = dtype or inner.dtype
    layers = quantised_layers(inner)
    for name, module in list(inner.named_modules()):
        adapted = isinstance(module, BaseTunerLayer)
        base = module.get_base_layer() if adapted else module
        if name not in layers and not (adapted and f"{name}.base_layer" in layers):
            if adapted:  # merged by peft, in place
                base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            continue
        if not adapted and name.endswith(".base_layer"):  # replaced with the adapter around it
            continue
        weights = dequantised(base, torch.float32)
        for adapter in module.active_adapters if adapted else ():
            weights += module.get_delta_weight(adapter).float()
        inner.set_submodule(name, _linear(weights.to(dtype), base.bias))
    made = merged(made) if made is not inner else inner
    made.hf_quantizer.remove_quantization_config(made)
    for flag in ("is_loaded_in_4bit", "is_4bit_serializable", "is_loaded_in_8bit", "is_8bit_serializable"):
        if hasattr(made, flag):
            delattr(made, flag)
    return made


def _linear(weights: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weights.shape[1], weights.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weights, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weights.dtype), requires_grad=False)
    return layer

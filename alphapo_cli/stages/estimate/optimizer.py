"""Bytes of an optimizer's state, found by one step of the optimizer itself on a small matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import Trainer

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder

_SIDE = 512  # of the matrix: 8-bit optimizers keep smaller ones in 32 bits, and a table of 256 values beside them
_ADAM = 8.0  # bytes a parameter: two moments in float32


def bytes_per_parameter(cfg: TrainConfig) -> tuple[float, str | None]:
    """Bytes of state for each trained parameter.

    Args:
        cfg: the configuration; `trainer.optim` names the optimizer.

    Returns:
        (bytes, a note where the optimizer could not be tried and counts as Adam).
    """
    dtype = torch.bfloat16 if cfg.model.dtype == "bfloat16" and cfg.model.lora.r is None else torch.float32
    order = DataOrder.of(replace(cfg.trainer, max_steps=1, order="shuffled"), 1, 1, 0)
    try:
        name = cfg.trainer.optim.removeprefix("paged_")  # the same state, which needs CUDA to be tried
        settings_here = replace(cfg.trainer, bf16=False, use_cpu=True, max_steps=1, optim=name)
        args = training_arguments(settings_here, order, "unused", 0)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        weight = torch.nn.Parameter(torch.zeros(_SIDE, _SIDE, dtype=dtype))
        weight.grad = torch.ones_like(weight)
        optimizer = kind([weight], **settings)
        optimizer.step()
        state = optimizer.state[weight].values()
        found = sum(v.numel() * v.element_size() for v in state if isinstance(v, torch.Tensor) and v.numel() > 1)
        return found / _SIDE**2, None
    except Exception as error:
        note = f"trainer.optim={cfg.trainer.optim} cannot be tried here ({type(error).__name__}); it counts as Adam"
        return _ADAM, note

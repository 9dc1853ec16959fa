"""What few bits do not go with, looked at before any weights are read: quantised bases, 8-bit optimizers, lost updates."""

from __future__ import annotations

import re

import torch
from accelerate import PartialState

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling import quantisation
from alphapo_cli.modeling.declared import weights_dtype
from alphapo_cli.modeling.loading import check_unquantised, load_config
from alphapo_cli.modeling.locations import ModelSource, base_source, locate

# Names of transformers' optimizers that are bitsandbytes'.
_OF_BITSANDBYTES = re.compile(r"8bit|paged|bnb|lion|ademamix")
_TYPICAL = 0.02  # standard deviation of a language model's weights: the usual initializer_range
_BITS = 9  # a number of bfloat16 has 8 bits: what is below 2^-9 of it does not change it


def check_low_precision(cfg: TrainConfig, *, here: bool = True) -> None:
    """Check what a training does with few bits.

    Args:
        cfg: the run's configuration.
        here: whether it is going to run on this machine, with the packages that are installed here.

    Raises:
        UsageError: settings do not go together, or need what is not here.
    """
    _check_quantisation(cfg, here=here)
    _check_optimizer(cfg, here=here)
    _check_updates(cfg, here=here)


def device_of(cfg: TrainConfig) -> torch.device:
    """The device of this process, where a quantised base is put tensor by tensor."""
    return torch.device("cpu") if cfg.trainer.use_cpu else PartialState().device


def _check_quantisation(cfg: TrainConfig, *, here: bool) -> None:
    kind = cfg.model.quantization
    key = f"model.quantization={kind}"
    path = cfg.model.path
    source = None if path is None else locate(path, cfg.model.revision, weightless=not here)
    if (
        source is not None
        and source.adapter
        and (source.quantization != quantisation.NONE or kind != quantisation.NONE)
    ):
        _refuse_adapter(source, key)
    if kind == quantisation.NONE:
        return
    if source is None and cfg.model.source == "from_scratch":
        raise UsageError(f"{key}: needs a saved model, and random weights are trained whole; give model.path")
    if cfg.model.lora.r is None:
        raise UsageError(f"{key}: quantised weights do not train; add model.lora.r=16 (QLoRA), or leave it out")
    if here:
        quantisation.check_installed()
    if source is not None and (here or source.local):
        check_unquantised(load_config(source, cfg.model.trust_remote_code), source)


def _refuse_adapter(source: ModelSource, key: str) -> None:
    """Refuse an adapter as the start where its base is quantised, or shall be."""
    if source.quantization == quantisation.NONE:
        why = f"is an adapter, which would have to be merged before {key} quantises its base"
    else:
        why = f"is an adapter that was trained over a base quantised to {source.quantization}"
    raise UsageError(
        f"{source.key}={source.asked}: {why}; type alphapo export {source.asked} --merge --to DIR, and give model.path=DIR"
    )


def _check_optimizer(cfg: TrainConfig, *, here: bool) -> None:
    name = cfg.trainer.optim
    if not here or not _OF_BITSANDBYTES.search(name) or cfg.sharding.mode != "none":  # none of them works on shards
        return
    try:
        quantisation.check_installed()
    except UsageError as error:
        raise UsageError(f"trainer.optim={name}: {error}, or take trainer.optim=adamw_torch") from error
    if name.startswith("paged_") and (cfg.trainer.use_cpu or not torch.cuda.is_available()):
        raise UsageError(
            f"trainer.optim={name}: needs a CUDA device, from whose memory it pages to the host's; take "
            f"trainer.optim={name.removeprefix('paged_')}"
        )


def _check_updates(cfg: TrainConfig, *, here: bool) -> None:
    """Refuse whole bfloat16 weights that no update of this learning rate would change."""
    model, rate = cfg.model, cfg.trainer.learning_rate
    if model.lora.r is not None or model.dtype not in ("bfloat16", "auto") or cfg.trainer.accept_lost_updates:
        return
    if rate >= _TYPICAL / 2**_BITS or not rate or not _is_bfloat16(cfg, here=here):
        return
    raise UsageError(
        f"model.dtype={model.dtype}: an update moves a weight by about trainer.learning_rate={rate:g}, which is "
        f"{rate / _TYPICAL:.1g} of a typical weight of {_TYPICAL}, and bfloat16 (8 bits) loses what is below 2^-{_BITS} = "
        f"{2**-_BITS:.1g} of it: next to nothing would be learnt; take model.dtype=float32 trainer.bf16=true, add "
        "model.lora.r=16 (its adapters are float32), or type trainer.accept_lost_updates=true"
    )


def _is_bfloat16(cfg: TrainConfig, *, here: bool) -> bool:
    model = cfg.model
    if model.dtype == "bfloat16":
        return model.path is not None or model.source != "from_scratch"  # random weights are float32
    if model.path is None:
        return False  # the embedded base is float32
    base = base_source(locate(model.path, model.revision, weightless=not here))
    if not here and not base.local:
        return False
    return weights_dtype(load_config(base, model.trust_remote_code), base.location, base.revision) == "bfloat16"

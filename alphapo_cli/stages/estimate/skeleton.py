"""A model as training would have it, made from its config.json without any weights: shapes that torch can run.

Only config.json, the tokenizer and the headers of the weights' files are read. What runs on it is the code that trains:
layouts, output layer, adapters, gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from alphapo_cli.config.schema import LoraConfig, ModelConfig, TrainConfig
from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.modeling.adapters import add_lora, vocabulary_rows
from alphapo_cli.modeling.layout.numbers import StandIns
from alphapo_cli.modeling.loading import DTYPES, load_config, random_model
from alphapo_cli.modeling.locations import WEIGHT_FILES, ModelSource, base_source, locate
from alphapo_cli.modeling.policy import PolicyModel, bare, policy_of
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.modeling.training_config import drop_router_loss, set_dropout
from alphapo_cli.stages.estimate.quantised import QuantisedStandIn, count_parameters, quantise

_CAUSAL = "alphapo_causal_sdpa"
_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of safetensors


@dataclass(frozen=True)
class Skeleton:
    """A policy without weights.

    Attributes:
        policy: the policy, in training mode; its tensors are stand-ins of `mode`.
        mode: the context in which it runs.
        on_disk: bytes of the files that its weights are read from; 0 where they are drawn at random.
        converted: whether the weights are converted to another dtype as they are read.
    """

    policy: PolicyModel
    mode: StandIns
    on_disk: int = 0
    converted: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters, adapters included."""
        return count_parameters(self.policy)

    @property
    def weights(self) -> int:
        """Bytes of parameters and buffers, adapters included."""
        return size_of([*self.policy.parameters(), *self.policy.buffers()])

    @property
    def trained(self) -> int:
        """Bytes of the parameters that train."""
        return size_of(p for p in self.policy.parameters() if p.requires_grad)

    @property
    def adapters(self) -> int:
        """Bytes of LoRA adapters; 0 without them."""
        return self.trained if hasattr(self.policy.lm, "get_base_model") else 0

    @property
    def merged(self) -> int:
        """Bytes of whole weights, adapters merged and quantised layers dequantised."""
        packed = [m for m in self.policy.modules() if isinstance(m, QuantisedStandIn)]
        item: int = bare(self.policy.lm).get_input_embeddings().weight.element_size()
        whole = sum(item * m.in_features * m.out_features - size_of([m.weight]) for m in packed)
        return self.weights - self.adapters + whole

    @property
    def head(self) -> int:
        """Bytes of the output layer, if it trains: what the probe copies at step 0."""
        return size_of(p for p in bare(self.policy.lm).get_output_embeddings().parameters() if p.requires_grad)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max(size_of([p]) for p in self.policy.parameters())


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; of tied ones once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def policy_skeleton(cfg: TrainConfig, tokenizer: Any, base: Path | None, mode: StandIns | None = None) -> Skeleton:
    """Make the policy of a training without weights.

    Args:
        cfg: the configuration of the training.
        tokenizer: its tokenizer; gives the vocabulary of a model of random weights.
        base: the directory of the embedded world's base, where `cfg` starts from that.
        mode: the context in which it shall run; None: one of its own.

    Returns:
        The policy in training mode, with adapters and gradient checkpointing as configured.

    Raises:
        UsageError: transformers has no such model, or layout or adapters cannot be used with it.
    """
    mode = mode or StandIns()
    on_disk, converted = 0, False
    if cfg.model.path is None and cfg.model.source == "from_scratch":
        with torch.device("meta"):
            lm = random_model(cfg.model.scratch, tokenizer, cfg.seed)
    else:
        source = locate(cfg.model.path or str(base), cfg.model.revision, weightless=True)
        lm = _of_config(source, cfg.model)
        on_disk, stored = _files(source)
        if not source.weights:
            stored = declared_dtype(source, cfg.model)
            on_disk = stored.itemsize * count_parameters(lm)
        converted = stored is not None and stored != next(lm.parameters()).dtype
    if cfg.model.dropout is not None:
        set_dropout(lm, cfg.model.dropout)
    drop_router_loss(lm)
    if cfg.model.quantization != NONE:
        quantise(lm, cfg.model.quantization)
    if cfg.model.lora.r is not None:
        lm = add_lora(lm, cfg.model, cfg.seed)
    return Skeleton(_policy(_in_mode(lm, mode), cfg), mode, on_disk, converted)


def declared_dtype(source: ModelSource, cfg: ModelConfig) -> torch.dtype:
    """The dtype of a model's weights by its config.json; float32 where that says nothing."""
    found = getattr(load_config(base_source(source), cfg.trust_remote_code).get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def gathered_skeleton(cfg: TrainConfig, tokenizer: Any, base: Path | None, mode: StandIns) -> Skeleton:
    """Make the policy as a process of a sharded run computes with it under `trainer.bf16`: matrices come as bfloat16.

    So autocast casts none of them, and keeps no copies; the residual stream stays float32.

    Returns:
        The policy, for its passes; its sizes are not those of the shards.
    """
    skeleton = policy_skeleton(cfg, tokenizer, base, mode)
    with mode, torch.no_grad():
        for module in skeleton.policy.modules():
            if isinstance(module, torch.nn.Linear):
                weight = torch.empty(module.weight.shape, dtype=torch.bfloat16, device="cpu")
                module.weight = torch.nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    return skeleton


def frozen_skeleton(name: str, cfg: TrainConfig, key: str, mode: StandIns) -> PolicyModel:
    """Make the model that `model.reference` or `model.guide` names, without weights, to run in `mode`.

    Returns:
        The frozen policy.

    Raises:
        UsageError: as `policy_skeleton`.
    """
    source = locate(name, key=key, weightless=True)
    lm = _of_config(source, replace(cfg.model, lora=LoraConfig()))
    kind = cfg.model.quantization if source.quantization == NONE else source.quantization
    if kind != NONE:
        quantise(lm, kind)
    lm = _in_mode(lm, mode)
    plain = replace(cfg, trainer=replace(cfg.trainer, gradient_checkpointing=False))
    return _policy(lm, plain).requires_grad_(False).eval()


def _of_config(source: ModelSource, cfg: ModelConfig) -> Any:
    base = base_source(source)
    config = load_config(base, cfg.trust_remote_code)
    attention = cfg.attention if cfg.attention in ("sdpa", "eager") else None
    dtype = DTYPES[cfg.dtype]
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    try:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=cfg.trust_remote_code
            )
            rows = vocabulary_rows(Path(source.location)) if source.adapter else None
            if rows is not None and rows != lm.get_input_embeddings().weight.shape[0]:
                lm.resize_token_embeddings(rows, mean_resizing=False)
    except (ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{source.key}={source.asked}: no usable model there ({first_line(error)})") from error
    if attention is None and getattr(config, "attn_logit_softcapping", None):
        lm.set_attn_implementation("eager")  # as `load_model`
    return lm


def _in_mode(lm: Any, mode: StandIns) -> Any:
    """Put stand-ins of `mode` in the place of a model's tensors; tied ones stay tied.

    A model is made on the meta device first, because adapters cannot be added to stand-ins.

    Returns:
        The model.
    """
    made: dict[int, Any] = {}
    before = list(lm.parameters())  # kept alive, so that no id is given to another one
    with mode, torch.no_grad():
        for module in lm.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    if id(p) not in made:
                        blank = torch.empty(p.shape, dtype=p.dtype, device="cpu")
                        made[id(p)] = torch.nn.Parameter(blank, requires_grad=p.requires_grad)
                    module._parameters[name] = made[id(p)]
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cpu")
    del before
    return lm


def _policy(lm: Any, cfg: TrainConfig) -> PolicyModel:
    """Wrap a model without weights, in training mode."""
    if cfg.model.attention == "flex" and torch.cuda.is_available():  # what runs here are the CPU's kernels
        cfg = replace(cfg, model=replace(cfg.model, attention="auto"))
    policy = policy_of(lm, cfg)
    if bare(lm).config._attn_implementation == "sdpa":
        bare(lm).config._attn_implementation = _CAUSAL
    policy.train()
    if cfg.trainer.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy


def _files(source: ModelSource) -> tuple[int, torch.dtype | None]:
    """(bytes of a model's files of weights, their dtype where safetensors says so); 0 and None on the hub."""
    from safetensors import SafetensorError, safe_open

    base = base_source(source)
    if not base.local:
        return 0, None
    files = [file for pattern in WEIGHT_FILES for file in sorted(Path(base.location).glob(pattern))]
    dtype = None
    try:
        for file in [file for file in files if file.suffix == ".safetensors"][:1]:
            with safe_open(file, framework="pt") as stored:
                dtype = next((_STORED.get(stored.get_slice(n).get_dtype()) for n in stored.keys()), None)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{source.key}={source.asked}: no usable model there ({first_line(error)}); save the model there again, or "
            "copy its directory whole"
        ) from error
    return sum(file.stat().st_size for file in files), dtype


def _causal_mask(*args: Any, local_size: int | None = None, kv_length: int = 0, **settings: Any) -> Any:
    """The mask of transformers' "sdpa" on rows without padding: none, unless a window is shorter than the row.

    Tensors without numbers are taken for those of a compiler there, which gets a mask in any case.

    Returns:
        The mask, or None.
    """
    if local_size is None or kv_length < local_size:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, local_size=local_size, kv_length=kv_length, **settings)


AttentionInterface.register(_CAUSAL, ALL_ATTENTION_FUNCTIONS["sdpa"])
AttentionMaskInterface.register(_CAUSAL, _causal_mask)

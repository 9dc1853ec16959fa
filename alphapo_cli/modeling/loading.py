"""Loading and initialising of models and tokenizers: directories, hub names, stored adapters, random weights."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from alphapo_cli.config.schema import ModelConfig, ScratchConfig
from alphapo_cli.errors import UsageError, first_line, say
from alphapo_cli.modeling import quantisation
from alphapo_cli.modeling.adapters import load_adapter, vocabulary_rows
from alphapo_cli.modeling.declared import context_length, weights_dtype
from alphapo_cli.modeling.deferred import CannotDefer, held_whole, settle, weights_left_in_files
from alphapo_cli.modeling.locations import ModelSource, base_source
from alphapo_cli.modeling.policy import bare, check_head

EXPORTED = "the model"  # the key of what `alphapo export` exports
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
# What transformers raises where a model's files hold something else than it expects; each of its classes checks them in
# its own way.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ImportError,
    RecursionError,
    StrictDataclassError,
)
DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64, "auto": "auto"
}  # fmt: skip


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer stored beside the weights; of an adapter without one, that of its base model.

    Raises:
        UsageError: there is no tokenizer, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    if source.adapter and not any((Path(source.location) / name).is_file() for name in TOKENIZER_FILES):
        source = base_source(source)
    try:
        return AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'tokenizer')}") from error


@dataclass(frozen=True)
class ModelLimits:
    """What a model can read: token ids below `tokens`, and sequences of `positions` tokens (None: no limit)."""

    tokens: int
    positions: int | None


def model_limits(source: ModelSource, cfg: ModelConfig) -> ModelLimits:
    """Return vocabulary size and number of positions from the model's configuration, without reading weights.

    Raises:
        UsageError: there is no configuration that transformers understands.
    """
    base = base_source(source)
    rows = vocabulary_rows(Path(source.location)) if source.adapter else None
    config = load_config(replace(base, key=source.key, asked=source.asked), cfg.trust_remote_code).get_text_config()
    return ModelLimits(rows or int(config.vocab_size), context_length(config))


def load_config(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """Return transformers' configuration of a model.

    Raises:
        UsageError: there is none that transformers understands.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'configuration')}") from error
    if isinstance(config.get_text_config(), dict):  # a class of text models, whose text_config means nothing
        raise UsageError(
            f"{source.key}={source.asked}: its config.json has a text_config that its kind of model does not know"
        )
    return config


def load_model(
    source: ModelSource, cfg: ModelConfig, device: torch.device | str = "cpu", *, in_files: bool = False
) -> Any:
    """Return the causal language model in evaluation mode; a stored adapter is merged into its base.

    A quantised base (`cfg.quantization`, or that over which the adapter was trained) is frozen, and a stored adapter lies
    over it.

    Args:
        source: where the model is.
        cfg: how it is loaded.
        device: where a quantised base is put; other models are put on the CPU.
        in_files: whether weights stay in their files, to be read one by one (see `deferred`), if that can be; where it
            cannot, stderr says why.

    Returns:
        The model.

    Raises:
        UsageError: the files do not hold a causal language model, the hub cannot be reached, or bitsandbytes is missing.
    """
    if not in_files:
        return _loaded(source, cfg, device)
    try:
        with weights_left_in_files():
            model = _loaded(source, cfg, device)
    except (CannotDefer, UsageError):  # of a model that cannot be loaded at all, this says why
        model = _loaded(source, cfg, device)
    held = held_whole(model)
    if held:
        of = f"{len(held)} of its {len(list(model.parameters()))} weights"
        note = f"{of} are not read one by one (first {held[0]}): process 0 holds them whole while the model is loaded"
        say(f"note: {source.key}={source.asked}: {note}", file=sys.stderr)
    return model


def _loaded(source: ModelSource, cfg: ModelConfig, device: torch.device | str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    base = base_source(source)
    attention = None if cfg.attention in ("auto", "flex") else cfg.attention
    kind = cfg.quantization if source.quantization == quantisation.NONE else source.quantization
    quantised = {} if kind == quantisation.NONE else quantisation.loading(kind, _dtype_of(base, cfg), device)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base.location,
            revision=base.revision,
            dtype=DTYPES[cfg.dtype],
            attn_implementation=attention,
            trust_remote_code=cfg.trust_remote_code,
            output_loading_info=True,
            **quantised,
        )
        _check_complete(model, loaded["missing_keys"], base)
        settle(model)
        if quantised:
            quantisation.freeze(model)
        if source.adapter:
            model = load_adapter(model, Path(source.location), merge=not quantised)
    except (*UNREADABLE, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'model')}") from error
    if attention is None and getattr(model.config, "attn_logit_softcapping", None):
        bare(model).set_attn_implementation("eager")  # transformers' default, "sdpa", leaves soft-capping out
    check_head(bare(model))
    return model.eval()


def _dtype_of(base: ModelSource, cfg: ModelConfig) -> torch.dtype:
    """The dtype in which the weights of a base that is to be quantised are loaded; UsageError if they are quantised."""
    config = load_config(base, cfg.trust_remote_code)
    check_unquantised(config, base)
    found = DTYPES[cfg.dtype]
    return (
        found if isinstance(found, torch.dtype) else getattr(torch, weights_dtype(config, base.location, base.revision))
    )


def check_unquantised(config: Any, source: ModelSource) -> None:
    """Check that the files of a model that is to be quantised hold floating-point weights.

    Raises:
        UsageError: they are quantised.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            f"{source.key}={source.asked}: its weights are quantised already, and model.quantization quantises "
            "floating-point weights; name the model that it was made from"
        )


def _check_complete(model: Any, missing: Collection[str], source: ModelSource) -> None:
    """Refuse (UsageError) a model some of whose weights are in no file: transformers has drawn them at random."""
    weights = [name for name, _ in model.named_parameters()]
    lacking = [name for name in weights if name in missing]
    if lacking:
        raise UsageError(
            f"{source.key}={source.asked}: {len(lacking)} of its {len(weights)} weights are in none of its files (first "
            f"{lacking[0]}), and would be random; save the model there again, or copy its directory whole"
        )


def needs_code(what: str, key: str) -> str:
    """What to say of a model that cannot be loaded without running code which its directory brings."""
    fix = "type model.trust_remote_code=true"
    if key.startswith("judge"):
        fix = "copy it as a model that transformers knows"
    elif key.startswith("scorer"):
        fix = "type scorer.trust_remote_code=true"
    elif key == EXPORTED:
        fix = "type --trust-remote-code"
    return (
        f"its {what} is code in its own directory, which is run only where that is typed; look at the code, then {fix}"
    )


def _load_reason(error: Exception, source: ModelSource, what: str) -> str:
    first = first_line(error)
    if "trust_remote_code" in str(error):
        return needs_code(what, source.key)
    if not source.local:
        return f"the {what} could not be had from the hub ({first}); check the name and the network, or give a local directory"
    return f"no usable {what} there ({first.strip(' :')}); save the model there again, or copy its directory whole"


def random_llama(tokenizer: Any, seed: int, **settings: Any) -> Any:
    """Initialise a Llama-architecture model at random from `seed`; torch's global generator stays as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def from_scratch(cfg: ScratchConfig, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """Return (model, tokenizer) of `model=from_scratch`: random weights, byte-level BPE trained on `texts`.

    Raises:
        UsageError: the hidden size does not divide into the heads.
    """
    tokenizer = train_tokenizer(cfg, texts)
    return random_model(cfg, tokenizer, seed), tokenizer


def train_tokenizer(cfg: ScratchConfig, texts: Iterable[str]) -> Any:
    """Return the tokenizer of `model=from_scratch`: byte-level BPE trained on `texts`.

    Raises:
        UsageError: the hidden size does not divide into the heads, so that there would be no model for it.
    """
    from alphapo_cli.data.bpe import train_bpe

    heads = cfg.num_attention_heads
    kv_heads = cfg.num_key_value_heads or heads
    if cfg.hidden_size % (2 * heads) or heads % kv_heads:
        raise UsageError(
            f"model.scratch: hidden_size={cfg.hidden_size} must be a multiple of 2 x num_attention_heads={heads}, "
            f"and the heads of num_key_value_heads={kv_heads}"
        )
    tokenizer = train_bpe(texts, cfg.vocab_size)
    tokenizer.model_max_length = cfg.max_position_embeddings
    return tokenizer


def random_model(cfg: ScratchConfig, tokenizer: Any, seed: int) -> Any:
    """Return the model of `model=from_scratch` with random weights."""
    return random_llama(
        tokenizer,
        seed,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size or -(-cfg.hidden_size * 11 // 4 // 64) * 64,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads,
        num_key_value_heads=cfg.num_key_value_heads or cfg.num_attention_heads,
        max_position_embeddings=cfg.max_position_embeddings,
        tie_word_embeddings=cfg.tie_word_embeddings,
    )

"""Policies, references and tokenizers: where they come from, and the module that turns a micro-batch into log-probs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alphapo_cli.config.schema import LoraConfig as LoraSettings
from alphapo_cli.config.schema import ModelConfig, ScratchConfig
from alphapo_cli.errors import UsageError, first_line, nearest
from alphapo_cli.modeling.policy import bare, check_head

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True)
class ModelSource:
    """A place that transformers can load: a directory with weights, or a hub name."""

    location: str
    local: bool
    adapter: bool
    revision: str | None = None
    key: str = "model.path"  # the setting that named it, and what it said, for messages
    asked: str = ""


def locate(path: str, revision: str | None = None, key: str = "model.path") -> ModelSource:
    """What `key` names: a run directory (its model/), a model directory or a hub name.

    Raises:
        UsageError: nothing is there, or a directory that holds no weights or no config.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "config.yaml").is_file() and (folder / "summary.json").is_file():
            if not (folder / "model").is_dir():
                raise UsageError(f"{key}={path}: this run has no model/ (its training did not end); train it first")
            folder = folder / "model"
        return _local(folder, path, key)
    if folder.exists():
        raise UsageError(f"{key}={path}: is a file; give the directory that holds config.json and the weights")
    if (
        path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or not HUB_NAME.match(path)
        or folder.parent.name == "runs"
    ):
        near = nearest(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [])
        raise UsageError(f"{key}={path}: no such directory{near}")
    return ModelSource(path, local=False, adapter=False, revision=revision, key=key, asked=path)


def _local(folder: Path, asked: str, key: str) -> ModelSource:
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise UsageError(
            f"{key}={asked}: no config.json in {folder}; give a run directory or a saved model's directory"
        )
    weights = [p for pattern in WEIGHT_FILES for p in folder.glob(pattern) if p.stat().st_size > 0]
    if not weights:
        raise UsageError(
            f"{key}={asked}: {folder} holds no weights (*.safetensors or pytorch_model*.bin); save the model there again"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            parts = {str(file) for file in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{key}={asked}: {index.name} is damaged; copy the directory whole") from error
        missing = sorted(file for file in parts if not (folder / file).is_file())
        if missing:
            raise UsageError(
                f"{key}={asked}: {len(missing)} weight file(s) missing, first {missing[0]}; copy the directory whole"
            )
    # Absolute: an adapter records where its base is, and is used from other directories.
    return ModelSource(str(folder.absolute()), local=True, adapter=adapter, key=key, asked=asked)


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside the weights.

    Raises:
        UsageError: there is none, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'tokenizer')}") from error


def base_location(source: ModelSource) -> str:
    """Where the whole weights are: for a stored adapter, those of its base.

    Raises:
        UsageError: the base is not where the adapter says.
    """
    if not source.adapter:
        return source.location
    try:
        stored = json.loads((Path(source.location) / "adapter_config.json").read_text())
        base = str(stored["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{source.key}={source.asked}: adapter_config.json names no base model; save the adapter again"
        ) from error
    return locate(base, key=f"base model of {source.location}").location


@dataclass(frozen=True)
class ModelLimits:
    """What a model can read: token ids below `tokens`, and `positions` of them in a row (None: no limit)."""

    tokens: int
    positions: int | None


def model_limits(source: ModelSource, cfg: ModelConfig) -> ModelLimits:
    """From the model's configuration, without reading weights.

    Raises:
        UsageError: there is none that transformers understands.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            base_location(source), revision=source.revision, trust_remote_code=cfg.trust_remote_code
        ).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'configuration')}") from error
    return ModelLimits(int(config.vocab_size), getattr(config, "max_position_embeddings", None))


def load_model(source: ModelSource, cfg: ModelConfig) -> Any:
    """The causal language model in evaluation mode; a stored adapter is merged into its base.

    Raises:
        UsageError: the files do not make a causal language model, or the hub cannot be reached.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    attention = None if cfg.attention in ("auto", "flex") else cfg.attention
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base_location(source),
            revision=source.revision,
            dtype=DTYPES[cfg.dtype],
            attn_implementation=attention,
            trust_remote_code=cfg.trust_remote_code,
        )
        if source.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.location).merge_and_unload()
            model.requires_grad_(True)  # peft had frozen it
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{source.key}={source.asked}: {_load_reason(error, source, 'model')}") from error
    if attention is None and getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' default, "sdpa", leaves soft-capping out
    check_head(model)
    return model.eval()


def _load_reason(error: Exception, source: ModelSource, what: str) -> str:
    first = first_line(error)
    if not source.local:
        return f"the {what} could not be had from the hub ({first}); check the name and the network, or give a local directory"
    return f"no usable {what} there ({first.strip(' :')}); save the model there again, or copy its directory whole"


def random_llama(tokenizer: Any, seed: int, **settings: Any) -> Any:
    """A Llama-architecture model with random weights drawn from `seed`, leaving the global generator as it was."""
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
    """(model, tokenizer) of `model=from_scratch`: a byte-level BPE trained on `texts`, and random weights.

    Raises:
        UsageError: the hidden size does not divide into the heads.
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
    model = random_llama(
        tokenizer,
        seed,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size or -(-cfg.hidden_size * 11 // 4 // 64) * 64,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=cfg.max_position_embeddings,
        tie_word_embeddings=cfg.tie_word_embeddings,
    )
    return model, tokenizer


def check_lora(cfg: LoraSettings) -> None:
    """Raises UsageError: settings of adapters while there are none, or adapters on no layer."""
    given = [f.name for f in fields(cfg) if f.name != "r" and getattr(cfg, f.name) != getattr(LoraSettings(), f.name)]
    if cfg.r is None and given:
        shown = f"model.lora.{given[0]}={getattr(cfg, given[0])}"
        raise UsageError(
            f"{shown}: there are no adapters while model.lora.r is null; add model.lora.r=16, or leave it out"
        )
    if cfg.target_modules == []:
        raise UsageError("model.lora.target_modules=[]: names no layer; leave it null for every linear layer")


def add_lora(model: Any, cfg: ModelConfig, seed: int) -> Any:
    """The model with fresh low-rank adapters, which leave its outputs unchanged at first; the base is frozen.

    Raises:
        UsageError: target_modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    lora = cfg.lora
    assert lora.r is not None
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UsageError(
            f"model.lora.target_modules={lora.target_modules}: not in this model (linear layers: {', '.join(names)})"
        ) from error


def save_model(lm: Any, tokenizer: Any, folder: Path, *, end_id: int, merge: bool = False) -> None:
    """Write what plain transformers and vLLM load: safetensors, tokenizer with chat template, generation config.

    An adapter is written as such unless `merge`. `end_id`, the token that ends a completion in training, is added to
    the ids at which generation stops: for ChatML and its like it is not the tokenizer's end-of-text token.
    """
    if merge and hasattr(lm, "merge_and_unload"):
        lm = copy.deepcopy(lm).merge_and_unload()
    bare(lm).config.use_cache = True  # what training needed off, generation wants on
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation = copy.deepcopy(bare(lm).generation_config)
    stops = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    generation.eos_token_id = list(dict.fromkeys([end_id, *(s for s in stops if s is not None)]))
    generation.save_pretrained(folder)

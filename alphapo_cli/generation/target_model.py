"""The model that generates: a run's, a saved one, a hub model, or the embedded world's base policy."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig, ModelConfig
from alphapo_cli.data.token_cache import tokenizer_hash
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.generation.adapter_support import adapter_obstacles, largest_rank, merge_obstacle
from alphapo_cli.generation.run_settings import run_around, run_folder
from alphapo_cli.generation.schema import SubjectConfig
from alphapo_cli.modeling.declared import context_length, stop_ids, weights_dtype
from alphapo_cli.modeling.loading import load_config, load_model, load_tokenizer
from alphapo_cli.modeling.locations import ModelSource, base_source, locate
from alphapo_cli.modeling.quantisation import NONE, check_installed
from alphapo_cli.modeling.weight_hashes import folder_hash

_VLLM_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TargetModel:
    """A model before its weights are loaded.

    Attributes:
        asked: what the user named.
        name: for model_outputs.json.
        source: where the model is, or its adapter.
        base: base model of an adapter, None without one.
        tokenizer: a transformers tokenizer.
        config: transformers' configuration of the full model.
        context: most tokens of prompt and answer together, None without a limit.
        dtype: of the weights.
        run: the run directory that was named, None for other models.
        trust_remote_code: whether code of the hub repository may run.
        quantization: how its linear layers are held, see `ModelConfig`.
    """

    asked: str
    name: str
    source: ModelSource
    base: ModelSource | None
    tokenizer: Any
    config: Any
    context: int | None
    dtype: str
    run: Path | None
    trust_remote_code: bool = False
    quantization: str = NONE

    @property
    def adapter_rank(self) -> int | None:
        """The largest LoRA rank of the adapter; None without one."""
        return None if self.base is None else largest_rank(Path(self.source.location), self.asked)

    @property
    def vllm_obstacle(self) -> str | None:
        """Why vLLM cannot serve the model; None where it can. Weights are not read for it."""
        if self.quantization != NONE:
            return f"its weights are quantised to {self.quantization}, which is not built for vLLM"
        if self.dtype not in _VLLM_DTYPES:
            return f"its weights are {self.dtype}, which vLLM does not have (model.dtype=float32 is another reading)"
        if self.base is None:
            return None
        found = adapter_obstacles(Path(self.source.location), self.asked)
        return f"vLLM cannot apply its adapter: it {' and '.join(found)}" if found else None

    @property
    def merge_obstacle(self) -> str | None:
        """Why transformers cannot serve the model; None where it can."""
        return None if self.base is None else merge_obstacle(Path(self.source.location), self.asked)

    @property
    def whole(self) -> ModelSource:
        """The source of configuration and full weights: the base model of an adapter, or the model itself."""
        return self.base or self.source

    def load(self, device: Any, attention: str = "auto") -> Any:
        """Load it with transformers.

        Args:
            device: where it runs.
            attention: its implementation, as `model.attention`.

        Returns:
            A causal language model in evaluation mode; an adapter is merged, or lies over its quantised base.

        Raises:
            UsageError: its files cannot be read.
        """
        settings = ModelConfig(
            dtype=self.dtype, attention=attention, trust_remote_code=self.trust_remote_code,
            quantization=self.quantization,
        )  # fmt: skip
        return load_model(self.source, settings, device).to(device)

    def stop_ids(self, data: DataConfig) -> tuple[int, ...]:
        """The ids that end an answer: the end token of training, and all that the model's files name."""
        from transformers import GenerationConfig

        generations = []
        for source in dict.fromkeys([self.source, self.whole]):
            with contextlib.suppress(OSError, ValueError):  # it has no generation_config.json
                generations.append(GenerationConfig.from_pretrained(source.location, revision=source.revision))
        return stop_ids(self.tokenizer, end_token_id(self.tokenizer, data), generations, [self.config])

    def identity(self, cache: Path) -> dict[str, Any]:
        """What its answers depend on: hashes of weights, adapter and tokenizer; for a hub model its commit."""
        weights = {"weights": _identity(self.whole, self.config, cache)}
        adapter = {"adapter": _identity(self.source, None, cache)} if self.base is not None else {}
        quantised = {} if self.quantization == NONE else {"quantization": self.quantization}
        return {**weights, **adapter, "tokenizer": tokenizer_hash(self.tokenizer), "dtype": self.dtype, **quantised}


def find(model: str, cfg: SubjectConfig, cache: Path, key: str = "model", name: str | None = None) -> TargetModel:
    """Locate a model and load its tokenizer and configuration.

    Args:
        model: a run directory, a saved model or adapter, or a hub name.
        cfg: revision, dtype, quantization and trust_remote_code.
        cache: the cache directory.
        key: the setting that messages name.
        name: what the model is called; None: as its directory or hub name is.

    Returns:
        The model, without its weights.

    Raises:
        UsageError: `model` is missing or cannot be used.
    """
    source = locate(model, cfg.revision, key=key)
    quantization = source.quantization if cfg.quantization == "auto" else cfg.quantization
    as_trained = quantization == source.quantization != NONE
    source = replace(source, quantization=quantization if source.adapter else NONE)
    if quantization != NONE:
        check_installed()
    tokenizer = load_tokenizer(source, cfg.trust_remote_code)
    base = None
    if source.adapter:
        base = base_source(source)
    whole = base or source
    config = load_config(whole, cfg.trust_remote_code)
    dtype = source.dtype if cfg.dtype == "auto" and as_trained and source.dtype is not None else cfg.dtype
    return TargetModel(
        asked=model,
        name=name or model_name(model, source),
        source=source,
        base=base,
        tokenizer=tokenizer,
        config=config,
        context=context_length(config),
        dtype=dtype if dtype != "auto" else weights_dtype(config, whole.location, whole.revision),
        run=run_folder(model),
        trust_remote_code=cfg.trust_remote_code,
        quantization=quantization,
    )


def model_name(model: str, source: ModelSource) -> str:
    """Return what a model is called: the last component of a local path; a hub name unchanged."""
    if not source.local:
        return model
    folder = Path(model).expanduser().resolve()
    run = run_around(folder)
    if run is None:
        return folder.name
    return run.name if folder.name == "model" else f"{run.name}-{folder.name}"


def _identity(source: ModelSource, config: Any, cache: Path) -> str:
    if source.local:
        return folder_hash(Path(source.location), cache)
    commit = getattr(config, "_commit_hash", None) or source.revision or "main"
    return f"{source.location}@{commit}"

"""The model that generates: a run's, a saved one, a hub model, or the embedded world's base policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.token_cache import tokenizer_hash
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.generation.run_settings import RunRecord, run_folder, run_record
from alphapo_cli.generation.schema import SubjectConfig
from alphapo_cli.modeling.adapters import VOCABULARY_LAYERS, adapter_settings
from alphapo_cli.modeling.loading import ModelSource, base_source, load_tokenizer, locate
from alphapo_cli.modeling.weight_hashes import folder_hash

_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


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
        recorded: training prompts and ids of a run, None for other models.
        trust_remote_code: whether code of the hub repository may run.
    """

    asked: str
    name: str
    source: ModelSource
    base: ModelSource | None
    tokenizer: Any
    config: Any
    context: int | None
    dtype: str
    recorded: RunRecord | None
    trust_remote_code: bool = False

    @property
    def adapter_rank(self) -> int | None:
        """The largest LoRA rank of the adapter; None without one."""
        if self.base is None:
            return None
        settings = adapter_settings(Path(self.source.location), self.asked)
        return int(max([settings["r"], *(settings.get("rank_pattern") or {}).values()]))

    @property
    def vllm_obstacle(self) -> str | None:
        """Why vLLM cannot apply the adapter; None where it can, or where there is no adapter."""
        if self.base is None:
            return None
        settings = adapter_settings(Path(self.source.location), self.asked)
        targets, kept = settings.get("target_modules") or [], settings.get("modules_to_save") or []
        layers = [targets] if isinstance(targets, str) else targets  # a text is a regular expression
        changed = sorted(name for name in [*layers, *kept] if any(part in name for part in VOCABULARY_LAYERS))
        if kept or changed:
            return f"its adapter changes {', '.join(changed or kept)}, to which vLLM applies none"
        return None

    @property
    def whole(self) -> ModelSource:
        """The source of configuration and full weights: the base model of an adapter, or the model itself."""
        return self.base or self.source

    def stop_ids(self, data: DataConfig) -> tuple[int, ...]:
        """The ids that end an answer: the end token of training, and the EOS of generation_config and tokenizer."""
        from transformers import GenerationConfig

        ids = [end_token_id(self.tokenizer, data)]
        for location in dict.fromkeys([self.source.location, self.whole.location]):
            try:
                settings = GenerationConfig.from_pretrained(location, revision=self.source.revision)
            except (OSError, ValueError):  # it has no generation_config.json
                continue
            eos = settings.eos_token_id
            ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
            break
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(token) for token in ids))

    def identity(self, cache: Path) -> dict[str, Any]:
        """What its answers depend on: hashes of weights, adapter and tokenizer; for a hub model its commit."""
        weights = {"weights": _identity(self.whole, self.config, cache)}
        adapter = {"adapter": _identity(self.source, None, cache)} if self.base is not None else {}
        return {**weights, **adapter, "tokenizer": tokenizer_hash(self.tokenizer), "dtype": self.dtype}


def find(model: str, cfg: SubjectConfig, cache: Path, key: str = "model", name: str | None = None) -> TargetModel:
    """Locate a model and load its tokenizer and configuration.

    Args:
        model: a run directory, a saved model or adapter, or a hub name.
        cfg: revision, dtype and trust_remote_code.
        cache: the cache directory.
        key: the setting that messages name.
        name: what the model is called; None: as its directory or hub name is.

    Returns:
        The model, without its weights.

    Raises:
        UsageError: `model` is missing or cannot be used.
    """
    source = locate(model, cfg.revision, key=key)
    folder = run_folder(model)
    tokenizer = load_tokenizer(source, cfg.trust_remote_code)
    base = None
    if source.adapter:
        base = base_source(source)
    config = _config(base or source, cfg.trust_remote_code)
    text = config.get_text_config()
    limits = [getattr(text, key, None) for key in _CONTEXT]
    saved = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return TargetModel(
        asked=model,
        name=name or _name(model, source),
        source=source,
        base=base,
        tokenizer=tokenizer,
        config=config,
        context=next((int(limit) for limit in limits if isinstance(limit, int)), None),
        dtype=cfg.dtype if cfg.dtype != "auto" else str(saved or "float32").removeprefix("torch."),
        recorded=None if folder is None else run_record(folder),
        trust_remote_code=cfg.trust_remote_code,
    )


def _name(model: str, source: ModelSource) -> str:
    """The last component of a local path; a hub name unchanged."""
    if not source.local:
        return model
    folder = Path(model).expanduser().resolve()
    # The model/ of a run is named after the run.
    return folder.parent.name if folder.name == "model" and run_folder(str(folder.parent)) else folder.name


def _config(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise UsageError(f"{source.key}={source.location}: its config.json cannot be used ({reason})") from error


def _identity(source: ModelSource, config: Any, cache: Path) -> str:
    if source.local:
        return folder_hash(Path(source.location), cache)
    commit = getattr(config, "_commit_hash", None) or source.revision or "main"
    return f"{source.location}@{commit}"

"""Whose answers are generated: a run, a saved model, a hub model, or the embedded world's base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.token_cache import tokenizer_hash
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.generation.run_settings import RunRecord, run_folder, run_record
from alphapo_cli.generation.schema import SubjectConfig
from alphapo_cli.modeling.loading import ModelSource, load_tokenizer, locate
from alphapo_cli.modeling.weight_hashes import folder_hash

_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class TargetModel:
    """A model before its weights are read.

    base: the model that an adapter (`source`) changes; config: transformers' configuration of the whole model;
    context: the most tokens of prompt and answer together, None where the model has no limit; dtype: of the weights;
    recorded: what training saw, for a run.
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
        """The largest rank in an adapter; None where there is none."""
        if self.base is None:
            return None
        settings = adapter_settings(self.source)
        return int(max([settings["r"], *(settings.get("rank_pattern") or {}).values()]))

    @property
    def whole(self) -> ModelSource:
        """Where configuration and full weights are."""
        return self.base or self.source

    def stop_ids(self, data: DataConfig) -> tuple[int, ...]:
        """The ids that end an answer: training's end token, the generation config's and the tokenizer's own."""
        from transformers import GenerationConfig

        found = [end_token_id(self.tokenizer, data)]
        for place in dict.fromkeys([self.source.location, self.whole.location]):
            try:
                settings = GenerationConfig.from_pretrained(place, revision=self.source.revision)
            except (OSError, ValueError):  # there is none
                continue
            eos = settings.eos_token_id
            found += eos if isinstance(eos, list) else [] if eos is None else [eos]
            break
        if self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(token) for token in found))

    def identity(self, cache: Path) -> dict[str, Any]:
        """What its answers depend on: hashes of weights, adapter and tokenizer (for a hub model: its commit)."""
        weights = {"weights": _identity(self.whole, self.config, cache)}
        adapter = {"adapter": _identity(self.source, None, cache)} if self.base is not None else {}
        return {**weights, **adapter, "tokenizer": tokenizer_hash(self.tokenizer), "dtype": self.dtype}


def find(model: str, cfg: SubjectConfig, cache: Path, key: str = "model", name: str | None = None) -> TargetModel:
    """What `model` names, called `name` (None: as its directory or hub name is).

    `key` is what messages call it.

    Raises:
        UsageError: nothing usable is there.
    """
    source = locate(model, cfg.revision, key=key)
    folder = run_folder(model)
    tokenizer = load_tokenizer(source, cfg.trust_remote_code)
    base = None
    if source.adapter:
        settings = adapter_settings(source)
        base = locate(settings["base_model_name_or_path"], settings.get("revision"), key="its base")
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


def adapter_settings(source: ModelSource) -> dict[str, Any]:
    """peft's adapter_config.json."""
    settings: dict[str, Any] = json.loads((Path(source.location) / "adapter_config.json").read_bytes())
    return settings


def _name(model: str, source: ModelSource) -> str:
    """The directory's own name, whatever the path to it; a hub name as it is."""
    if not source.local:
        return model
    folder = Path(model).expanduser().resolve()
    # A run's model/ is called by the run.
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

"""Which adapters vLLM can serve, from adapter_config.json and the names of the stored tensors, before anything starts.

vLLM adds a low-rank product to linear layers inside the model. It refuses other adapters once its engine is up, and is
silent about some of them. transformers applies them all, merged into the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import LoraConfig
from alphapo_cli.modeling.adapters import VOCABULARY_LAYERS, stored_shapes
from alphapo_cli.modeling.locations import adapter_settings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # LoRA ranks that vLLM supports
# Initialisations that leave the base model as it is, so that the stored adapter is a plain one. The others (PiSSA,
# OLoRA, LoftQ, CorDA) take their part out of the base's weights when peft loads the adapter.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# Kinds of adapter that are tokens before the prompt, or that choose among adapters for each text.
_UNMERGEABLE = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT",
    "POLY", "XLORA",
)  # fmt: skip
# Settings of peft's LoraConfig that vLLM has not got, where they are not empty, and what they are called.
_NOT_SERVED = {
    "use_dora": "has DoRA's magnitudes (use_dora)",
    "lora_bias": "has biases (lora_bias)",
    "trainable_token_indices": "changes single tokens (trainable_token_indices)",
    "target_parameters": "changes parameters outside of layers (target_parameters)",
    "layer_replication": "repeats layers (layer_replication)",
    "alora_invocation_tokens": "is active after certain tokens only (aLoRA)",
    "use_bdlora": "is block-diagonal (use_bdlora)",
    "use_qalora": "is quantisation-aware (use_qalora)",
    "kasa_config": "changes the base's own weights (kasa_config)",
    "monteclora_config": "draws its weights (monteclora_config)",
    "arrow_config": "chooses among adapters (arrow_config)",
    "megatron_config": "is for Megatron's layers (megatron_config)",
}


def largest_rank(folder: Path, name: str) -> int:
    """The largest rank of a stored adapter, 0 where it has none; UsageError where it has no settings."""
    settings = adapter_settings(folder, name)
    return max([int(settings.get("r") or 0), *map(int, (settings.get("rank_pattern") or {}).values())])


def adapter_obstacles(folder: Path, name: str) -> list[str]:
    """Why vLLM cannot apply a stored adapter.

    Args:
        folder: the adapter's directory.
        name: what messages call it.

    Returns:
        Reasons as "has ...", "changes ..."; none where vLLM can.

    Raises:
        UsageError: adapter_config.json cannot be read.
    """
    settings = adapter_settings(folder, name)
    kind = str(settings.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        return [f"is of peft's type {kind}, not LoRA"]
    found = _of_settings(settings)
    names = list(stored_shapes(folder))
    changed = [n for n in names if any(f".{layer}." in f".{n}" for layer in VOCABULARY_LAYERS)]
    if changed and not any("embedding" in text for text in found):
        found.append(f"changes the embeddings or the output layer ({_first(changed)})")
    whole = [n for n in names if ".lora_" not in n and n not in changed]
    if whole and not found:
        found.append(f"stores weights that are no low-rank product ({_first(whole)})")
    if (rank := largest_rank(folder, name)) > RANKS[-1]:
        found.append(f"has rank {rank}, and vLLM none above {RANKS[-1]}")
    return found


def merge_obstacle(folder: Path, name: str) -> str | None:
    """Why a stored adapter cannot be merged into its base, which is how transformers applies it; None where it can."""
    settings = adapter_settings(folder, name)
    if settings.get("alora_invocation_tokens"):
        return f"its adapter {_NOT_SERVED['alora_invocation_tokens']} and cannot be merged into its base"
    if (kind := str(settings.get("peft_type")).upper()) in _UNMERGEABLE:
        return f"its adapter is of peft's type {kind} and cannot be merged into its base"
    return None


def obstacle_of_settings(cfg: LoraConfig) -> str | None:
    """Why vLLM could not apply an adapter that `model.lora` is yet to train; None where it can."""
    assert cfg.r is not None
    found = _of_settings({"target_modules": cfg.target_modules})
    found += [f"has rank {cfg.r}, and vLLM none above {RANKS[-1]}"] if cfg.r > RANKS[-1] else []
    return " and ".join(found) or None


def _of_settings(settings: Mapping[str, Any]) -> list[str]:
    targets, kept = settings.get("target_modules") or [], settings.get("modules_to_save") or []
    layers = [targets] if isinstance(targets, str) else list(targets)  # a text is a regular expression
    vocabulary = sorted({n for n in [*layers, *kept] if any(part in str(n) for part in VOCABULARY_LAYERS)})
    found = []
    if vocabulary:
        found.append(f"changes {', '.join(vocabulary)}, of the embeddings or the output layer")
    if others := sorted(set(map(str, kept)) - set(vocabulary)):
        found.append(f"stores whole layers (modules_to_save: {', '.join(others)})")
    if (bias := settings.get("bias", "none")) not in (None, "none"):
        found.append(f"has biases (bias={bias})")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        found.append(f"changes the base's own weights (init_lora_weights={start})")
    return found + [text for key, text in _NOT_SERVED.items() if settings.get(key)]


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

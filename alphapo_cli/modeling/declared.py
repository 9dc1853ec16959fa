"""What a model's files declare: the ids that end an answer, the dtype of the weights, and the length of the context.

Each is read once, here, and given to every backend: transformers and vLLM read the same files differently where a
setting is missing or written in one of several places.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FALLBACK_DTYPE = "float32"
# Floating-point dtypes of safetensors; others (fp8, integers) are of quantised weights, which compute in another one.
_STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EOS = "eos_token_id"
# Keys in which configurations write the length of the context, as in vLLM.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# Kinds of rope scaling whose max_position_embeddings is the scaled length already, as in vLLM.
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def stop_ids(tokenizer: Any, end_id: int, generations: Iterable[Any], configs: Iterable[Any]) -> tuple[int, ...]:
    """The ids that end an answer: every one that any file of the model names.

    Args:
        tokenizer: its eos_token is one of them.
        end_id: the token that the chat template writes after an answer.
        generations: transformers' GenerationConfig of the model, and of an adapter beside it.
        configs: transformers' configuration of the model; its text configuration counts, too.

    Returns:
        Distinct ids, `end_id` first.
    """
    found = [end_id]
    for generation in generations:
        found += as_ids(getattr(generation, _EOS, None))
    found += as_ids(tokenizer.eos_token_id)
    for config in configs:
        for declared in _declared(config):
            found += as_ids(declared.get(_EOS))
    return tuple(dict.fromkeys(found))


def model_stop_ids(lm: Any, tokenizer: Any, end_id: int) -> tuple[int, ...]:
    """`stop_ids` of a loaded model, bare or in a wrapper of peft."""
    inner = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return stop_ids(tokenizer, end_id, [inner.generation_config], [inner.config])


def _declared(config: Any) -> Iterator[dict[str, Any]]:
    """config.json, and what it says about the text model. Defaults of the class are not declared, so the file is read."""
    from transformers import PreTrainedConfig

    whole: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        if name := getattr(config, "_name_or_path", ""):
            whole = PreTrainedConfig.get_config_dict(name, revision=getattr(config, "_commit_hash", None))[0]
    whole = whole or config.to_dict()
    yield whole
    text = config.get_text_config()
    if text is not config:
        parts = [value for value in whole.values() if isinstance(value, dict)]
        yield next((part for part in parts if part.get("model_type") == text.model_type), text.to_dict())


def as_ids(value: Any) -> list[int]:
    """The ids that a setting names: one, a list, or none (nothing, or -1 and the like)."""
    named = [int(token) for token in (value if isinstance(value, list | tuple) else [value]) if token is not None]
    return [token for token in named if token >= 0]


def weights_dtype(config: Any, location: str, revision: str | None = None) -> str:
    """The dtype of a model's weights: that of its configuration, else the one in which most of them are stored.

    Args:
        config: transformers' configuration.
        location: the model's directory or hub name.
        revision: of a hub name.

    Returns:
        The name of a torch dtype; `FALLBACK_DTYPE` where nothing says it.
    """
    text = config.get_text_config()
    said = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return stored_dtype(location, revision) if said is None else str(said).removeprefix("torch.")


def stored_dtype(location: str, revision: str | None = None) -> str:
    """The dtype in which most of the weights of a model or an adapter are stored.

    Args:
        location: its directory, or a model's hub name.
        revision: of a hub name.

    Returns:
        The name of a torch dtype; `FALLBACK_DTYPE` where no file says it.
    """
    numbers: dict[str, int] = {}
    for dtype, size in _stored_sizes(location, revision):
        numbers[dtype] = numbers.get(dtype, 0) + size
    return max(numbers, key=numbers.__getitem__) if numbers else FALLBACK_DTYPE


def _stored_sizes(location: str, revision: str | None) -> Iterator[tuple[str, int]]:
    """(dtype, bytes) of every floating-point tensor, from the files' headers."""
    folder = Path(location)
    if folder.is_dir():
        files = _safetensors(folder)
        for file in files:
            yield from _header_sizes(file)
        if not files:
            yield from _pickled_sizes(folder)
        return
    from huggingface_hub import get_safetensors_metadata

    with contextlib.suppress(Exception):  # no network, or a repository without such files: loading says so
        for part in get_safetensors_metadata(location, revision=revision).files_metadata.values():
            for tensor in part.tensors.values():
                if tensor.dtype in _STORED:
                    yield _STORED[tensor.dtype], tensor.data_offsets[1] - tensor.data_offsets[0]


def _safetensors(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from; others may lie beside them, such as consolidated.safetensors."""
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    with contextlib.suppress(
        OSError, ValueError, KeyError, AttributeError
    ):  # whoever loads the weights says what is wrong
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _header_sizes(file: Path) -> Iterator[tuple[str, int]]:
    try:
        with file.open("rb") as stored:
            (length,) = struct.unpack("<Q", stored.read(8))
            header = json.loads(stored.read(length))
    except (OSError, ValueError, struct.error, MemoryError, OverflowError):
        return  # whoever loads the weights says what is wrong
    for name, tensor in header.items():
        if name != "__metadata__" and tensor.get("dtype") in _STORED:
            first, last = tensor["data_offsets"]
            yield _STORED[tensor["dtype"]], last - first


def _pickled_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    import torch

    for file in sorted(folder.glob("pytorch_model*.bin")):
        with contextlib.suppress(Exception):  # as above
            for tensor in torch.load(file, map_location="meta", weights_only=True).values():
                if tensor.is_floating_point():
                    yield str(tensor.dtype).removeprefix("torch."), tensor.numel() * tensor.element_size()


def context_length(config: Any) -> int | None:
    """The most tokens of prompt and answer together, as vLLM reads a configuration; transformers states no limit.

    Linear and dynamic rope scaling multiply the length; YaRN and its like have it multiplied already.

    Args:
        config: transformers' configuration.

    Returns:
        The length in tokens; None where the configuration names none.
    """
    text = config.get_text_config()
    lengths = [length for key in _LENGTHS if isinstance(length := getattr(text, key, None), int | float)]
    if not lengths:
        return None
    longest: float = min(lengths)
    if own := getattr(text, "model_max_length", None):  # of Cohere's models, which it alone is true of
        longest = own
    factor = 1.0
    if "gemma3" not in text.model_type:  # its length is scaled already
        for rope in _rope_parameters(text):
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind not in _SCALED_ALREADY:
                factor = rope.get("factor", factor) or 1.0
    return int(longest * factor)


def original_context(config: Any) -> int | None:
    """The length in tokens up to which LongRoPE's short factors hold (arXiv:2402.13753); None for other models."""
    text = config.get_text_config()
    for rope in _rope_parameters(text):
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
            length = rope.get(
                "original_max_position_embeddings", getattr(text, "original_max_position_embeddings", None)
            )
            return None if length is None else int(length)
    return None


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The parameters of rotary embeddings: of the model, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(found, dict):
        return []
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested if nested and len(nested) == len(found) else [found]

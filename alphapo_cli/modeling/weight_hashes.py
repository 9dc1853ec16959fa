"""SHA-256 of a model, on disk or in memory, by which equal weights are recognised wherever they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.modeling.locations import ModelSource, base_source
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.sharding import at_rest, gathered
from alphapo_cli.storage.file_hashes import cached_of_file
from alphapo_cli.storage.hashing import digest

_FILES = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "config.json", "adapter_config.json")
WEIGHTS = _FILES
PATTERNS = (*_FILES, "generation_config.json")


def folder_hash(folder: Path, cache: Path, patterns: Sequence[str] = PATTERNS) -> str:
    """Hash names and contents of the files that decide what a model computes.

    Reading a large model takes minutes, and the same command asks again: hashes of large files are cached.

    Args:
        folder: the model's directory.
        cache: directory of cached hashes, stored under a file's path, size, modification time and inode.
        patterns: which files count.

    Returns:
        SHA-256 in hexadecimal.
    """
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return digest([[file.name, cached_of_file(file, cache)["sha256"]] for file in files])


def weights_hash(source: ModelSource, cache: Path) -> str:
    """Hash the weights that training starts from: of an adapter also its base, of a hub model its name."""
    if not source.local:
        return digest([source.location, source.revision])
    folders = dict.fromkeys([source.location, base_source(source).location])
    return digest([folder_hash(Path(folder), cache, WEIGHTS) for folder in folders])


def state_hash(lm: Any) -> str:
    """Hash a model's configuration and the names, dtypes, shapes and bytes of its parameters and buffers.

    The identity of a reference: two models of equal weights and, say, another rope_theta are two references. A model
    and the same one under fresh adapters, which change nothing, are one, and so are a model and the same one sharded, of
    which every process gets the hash.

    Returns:
        SHA-256 in hexadecimal.
    """
    config = bare(lm).config.to_dict()
    config.pop("_name_or_path", None)  # where it was loaded from
    sha = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    at_rest(lm)
    for name, stored in sorted(_without_idle_adapters(lm.state_dict()).items()):
        tensor = gathered(stored)  # one at a time, whole
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()


def _without_idle_adapters(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state without adapters if each of them adds a product with zero; else `state` unchanged."""
    adapters = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    zeros = [tensor for name, tensor in adapters.items() if ".lora_B." in name or ".lora_embedding_A." in name]
    # Under an adapter the output layer takes another code path, which may round differently.
    if not zeros or any("lm_head." in name for name in adapters) or any(gathered(tensor).any() for tensor in zeros):
        return state
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name not in adapters
    }

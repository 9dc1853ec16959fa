"""The content of a model directory as one hash, so that equal weights are recognised wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from alphapo_cli.files import write_atomic
from alphapo_cli.models import ModelSource, base_location
from alphapo_cli.runs import digest

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json", "adapter_config.json")
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "config.json", "generation_config.json", "adapter_config.json")
REMEMBERED = 64 << 20  # bytes from which a file's hash is kept in the cache


def folder_hash(folder: Path, cache: Path, patterns: Sequence[str] = PATTERNS) -> str:
    """Hex SHA-256 over names and contents of the files that decide what a model computes.

    Hashes of large files are kept in `cache` under their path, size and time of change: reading a large model takes
    minutes, and the same line asks again.
    """
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return digest([[file.name, _file_hash(file, cache)] for file in files])


def weights_hash(source: ModelSource, cache: Path) -> str:
    """One hash of what training starts from: of an adapter also its base, of a model on the hub its name."""
    if not source.local:
        return digest([source.location, source.revision])
    folders = dict.fromkeys([source.location, base_location(source)])
    return digest([folder_hash(Path(folder), cache, WEIGHTS) for folder in folders])


def _file_hash(file: Path, cache: Path) -> str:
    facts = file.stat()
    if facts.st_size < REMEMBERED:
        return _read(file)
    place = cache / "hashes" / digest([str(file.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    try:
        return place.read_text()
    except OSError:
        found = _read(file)
        write_atomic(place, found)
        return found


def _read(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Content hashes of local data files: a run that is complete detects changed data without parsing the files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.sources import find_files
from alphapo_cli.errors import UsageError


def fingerprints(cfg: DataConfig) -> dict[str, str]:
    """Hex SHA-256 of the files of `data.path` and `data.eval_path`, by setting; unreadable ones are left out."""
    hashes = {}
    for setting, path in (("data.path", cfg.path), ("data.eval_path", cfg.eval_path)):
        if path is None:
            continue
        try:
            digests = [_digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in find_files(path)]
        except (OSError, UsageError):
            continue
        hashes[setting] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return hashes


@functools.lru_cache(maxsize=64)  # the cells of a sweep ask for the same files
def _digest(file: Path, modified_ns: int, size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""What local data files hold, as hashes: told apart without reading them as data, so that a complete run can ask."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.sources import find_files
from alphapo_cli.errors import UsageError


def fingerprints(cfg: DataConfig) -> dict[str, str]:
    """Hex SHA-256 of what `data.path` and `data.eval_path` name, by setting; what cannot be read is left out."""
    found = {}
    for setting, path in (("data.path", cfg.path), ("data.eval_path", cfg.eval_path)):
        if path is None:
            continue
        try:
            digests = [_digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in find_files(path)]
        except (OSError, UsageError):
            continue
        found[setting] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return found


@functools.lru_cache(maxsize=64)  # the cells of a sweep ask for the same files
def _digest(file: Path, changed: int, size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

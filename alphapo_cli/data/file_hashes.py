"""Content hashes of local data files: a run that is complete detects changed data without parsing the files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.folders import find
from alphapo_cli.data.load import paths_of, placed, split_paths
from alphapo_cli.errors import UsageError


def fingerprints(cfg: DataConfig) -> dict[str, str]:
    """Hex SHA-256 of the data files that training and evaluation pairs are read from, by setting.

    Args:
        cfg: the data settings.

    Returns:
        data.path, data.eval_path and, where data.path holds the evaluation pairs, data.eval_split; what cannot be read is
        left out.
    """
    hashes = {}
    for setting, paths, split in (
        ("data.path", paths_of(cfg.path), cfg.split),
        ("data.eval_path", paths_of(cfg.eval_path), cfg.eval_split or ""),
        ("data.eval_split", split_paths(cfg), cfg.eval_split or ""),
    ):
        try:
            files = [file for path in paths for file in find(placed(path, cfg), split, cfg.config).files]
            digests = [_digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        except (OSError, UsageError):
            continue
        if digests:
            hashes[setting] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return hashes


@functools.lru_cache(maxsize=64)  # the cells of a sweep ask for the same files
def _digest(file: Path, modified_ns: int, size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

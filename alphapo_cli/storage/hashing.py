"""Hashes of settings and of the content of files. Imports nothing heavy: `alphapo sweep --status` uses them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LARGE = 256 << 20  # bytes; a larger file is hashed by size and modification time, without reading it


def digest(settings: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of `settings` (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content(named: object) -> str | None:
    """Hash of the content of a file, or of the files directly in a directory.

    Files above LARGE bytes, such as weights, count by size and modification time: reading them takes minutes.

    Args:
        named: a value of a setting, which may be the path of a file or directory.

    Returns:
        The hash, or None where `named` is no path of an existing file or directory, or of an empty directory.
    """
    if not isinstance(named, str | Path):
        return None
    path = Path(named).expanduser()
    try:
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
        return digest([[file.name, _of_file(file)] for file in files]) if files else None
    except OSError:  # such as a name too long for a file
        return None


def plan_key(lines: Sequence[Any], files: Iterable[Path | None]) -> str:
    """Hash of everything that the outcome of generation and evaluation depends on, apart from the run itself.

    Args:
        lines: [groups, values] of generation and of evaluation; a value may name a file, whose content counts.
        files: files named by options, whose content counts.

    Returns:
        The hash.
    """
    named = [value for _, values in lines for value in values.values()]
    return digest([lines, [content(each) for each in (*files, *named)]])


def _of_file(file: Path) -> str:
    stat = file.stat()
    if stat.st_size > LARGE:
        return f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()

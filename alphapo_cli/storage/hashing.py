"""Hashes of settings and of what named files hold. Imports nothing heavy: `alphapo sweep --status` asks for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LARGE = 256 << 20  # bytes from which a file is not read to see whether it changed


def digest(settings: Any) -> str:
    """sha256 of anything that json can write, in one canonical form."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content(named: object) -> str | None:
    """A hash of what a file, or the files directly in a directory, hold; None for anything else.

    Weights are told apart by size and time of change: reading them takes minutes.
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
    """Changes with anything that an outcome depends on, apart from the run itself.

    `lines`: [groups, values] of generation and of evaluation; a value may name a file.
    """
    named = [value for _, values in lines for value in values.values()]
    return digest([lines, [content(each) for each in (*files, *named)]])


def _of_file(file: Path) -> str:
    facts = file.stat()
    if facts.st_size > LARGE:
        return f"{facts.st_size} bytes of {facts.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()

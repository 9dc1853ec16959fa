"""Where the product's own files are: shipped YAML, and the cache."""

from __future__ import annotations

import os
from pathlib import Path


def shipped(name: str) -> Path:
    """The directory conf/ or sweeps/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


def cache_dir() -> Path:
    """$ALPHAPO_CACHE, else $XDG_CACHE_HOME/alphapo, else ~/.cache/alphapo. Not created."""
    own = os.environ.get("ALPHAPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(base).expanduser() / "alphapo" if base else Path.home() / ".cache" / "alphapo"

"""Where the product's own files are: shipped YAML, and the cache."""

from __future__ import annotations

import os
from pathlib import Path

from alphapo_cli.errors import UsageError


def shipped(name: str) -> Path:
    """The directory conf/ or sweeps/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name


def cache_dir() -> Path:
    """$ALPHAPO_CACHE, else $XDG_CACHE_HOME/alphapo, else ~/.cache/alphapo. Not created.

    Raises:
        UsageError: there is no home directory, as for a container's user without a name.
    """
    own = os.environ.get("ALPHAPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    place = Path(own) if own else Path(base) / "alphapo" if base else Path("~/.cache/alphapo")
    try:
        return place.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{place}: there is no such home directory; set ALPHAPO_CACHE to a folder for the cache"
        ) from error

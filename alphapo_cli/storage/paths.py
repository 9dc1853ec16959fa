"""The cache directory."""

from __future__ import annotations

import os
from pathlib import Path

from alphapo_cli.errors import UsageError


def cache_dir() -> Path:
    """The cache directory, which is not created here.

    Returns:
        $ALPHAPO_CACHE, else $XDG_CACHE_HOME/alphapo, else ~/.cache/alphapo.

    Raises:
        UsageError: the user has no home directory, as a container's user without a name.
    """
    own = os.environ.get("ALPHAPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(base) / "alphapo" if base else Path("~/.cache/alphapo")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{folder}: there is no such home directory; set ALPHAPO_CACHE to a folder for the cache"
        ) from error

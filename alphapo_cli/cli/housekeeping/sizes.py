"""How much room files take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def bytes_of(place: Path) -> int:
    """Size in bytes of a file, or of the files in a folder, without files that another process removes meanwhile."""
    if not place.is_dir() or place.is_symlink():
        with contextlib.suppress(OSError):
            return os.lstat(place).st_size
        return 0
    total = 0
    for parent, _, files in os.walk(place):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total

"""The cache of shared work: what it holds, and which entries go by age and size.

An entry is a file or a folder in a folder of its kind (base/, tokens/, reference/, ...); its age counts from the last
change of a file in it. Every entry is content-addressed and made again where it is missing, so removing one costs time
and nothing else. One that a process may be writing (changed within the last hour) stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.cli.housekeeping.sizes import bytes_of

YOUNG = 3600.0  # seconds


@dataclass(frozen=True)
class Cached:
    """One entry: its kind, size in bytes, and age in seconds."""

    path: Path
    kind: str
    size: int
    age: float


def entries(folder: Path) -> list[Cached]:
    """All entries of a cache, the oldest first; none where there is no such folder."""
    now = time.time()
    found = []
    for kind in _children(folder):
        if kind.is_dir() and not kind.is_symlink():
            found += [Cached(place, kind.name, bytes_of(place), now - _changed(place)) for place in _children(kind)]
    return sorted(found, key=lambda e: (-e.age, str(e.path)))


def chosen(found: Sequence[Cached], older: float | None, keep: float | None) -> list[Cached]:
    """Select entries that go.

    Args:
        found: as `entries` returns them.
        older: seconds; entries of a larger age go. None: age does not matter.
        keep: bytes; the oldest entries go until the others together take no more. None: size does not matter.

    Returns:
        The entries, none of them younger than an hour.
    """
    going = [e for e in found if older is not None and e.age > max(older, YOUNG)]
    if keep is not None:
        left = sum(e.size for e in found) - sum(e.size for e in going)
        for entry in found:
            if left <= keep:
                break
            if entry not in going and entry.age > YOUNG:
                going.append(entry)
                left -= entry.size
    return going


def remove(entry: Cached) -> None:
    """Remove an entry; raises OSError. It takes a hidden name first, so that no reader finds a part of it."""
    away = entry.path.with_name(f".{entry.path.name}.removed")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(entry.path, away)
        shutil.rmtree(away) if away.is_dir() and not away.is_symlink() else away.unlink()


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _changed(place: Path) -> float:
    times = [0.0]
    for path in (place, *(place.rglob("*") if place.is_dir() else ())):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)

"""A file that the owner of a run lock commits: written beside its final name, which it gets once the lock is given up.

An owner that is killed between the two leaves a file that counts under the name in which it was written: the lock file
of its generation, `.done` or `.free`, says that it does.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_COMMITTED = ("done", "free")


def beside(target: Path, generation: int) -> Path:
    """The name under which the owner of a generation writes `target` before it commits it."""
    return target.with_name(f".{target.name}.{generation:06d}")


def committed(folder: Path, target: Path) -> Path | None:
    """Find what an owner committed and had no time to give its name.

    Args:
        folder: the locks, a run's .claim/.
        target: the file that is committed.

    Returns:
        The file that counts in place of `target`; None where that is `target` itself.
    """
    found = [path for path, number in _written(target) if _is_committed(folder, number)]
    return max(found, default=None)


def settle(folder: Path, target: Path, generation: int) -> None:
    """Give what an earlier owner committed its name, and remove what was not committed.

    Args:
        folder: the locks.
        target: the file that is committed.
        generation: of the lock that this process holds.

    Raises:
        OSError: the disk refuses.
    """
    for path, number in sorted(_written(target)):
        if int(number) > generation:
            continue
        with contextlib.suppress(FileNotFoundError):  # its owner woke up
            # One of this generation is left from a directory whose locks were removed.
            if int(number) < generation and _is_committed(folder, number):
                os.replace(path, target)
            else:
                path.unlink()


def _written(target: Path) -> list[tuple[Path, str]]:
    """Files beside `target` and the generations that wrote them."""
    found = ((path, path.name.rpartition(".")[2]) for path in target.parent.glob(f".{target.name}.*"))
    return [(path, number) for path, number in found if re.fullmatch(r"\d{6}", number)]


def _is_committed(folder: Path, number: str) -> bool:
    return any((folder / f"{number}.{stage}").exists() for stage in _COMMITTED)

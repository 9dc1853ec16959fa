"""Directories that only the holder of a run lock may put in place.

A process can stand still for longer than its lock is believed (a suspended machine, a file system that hangs). It then
wakes up in the middle of a long write, behind a successor that may have finished. So a directory is filled under a name
that bears the lock's generation, the lock is asked again when it is full, and it takes its final name without replacing
what is there: rename(2) refuses a directory with files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from alphapo_cli.storage.atomic import make_folder, sync, sync_tree
from alphapo_cli.storage.run_lock import RunLock


@contextlib.contextmanager
def owned_directory(target: Path, lock: RunLock) -> Iterator[Path]:
    """A directory to fill, which takes the name `target` once the block has ended and all of it is on disk.

    Args:
        target: the directory's final name; its parents are made. One that is there is replaced.
        lock: the run lock that this process took.

    Yields:
        The directory, `.<name>.<generation>` beside `target`.

    Raises:
        LockLost: another process has taken over the run; nothing of its work was touched.
        OSError: the disk refuses; `target` is as it was, and nothing is left beside it.
    """
    beside = target.with_name(f".{target.name}.{lock.generation:06d}")
    shutil.rmtree(beside, ignore_errors=True)
    make_folder(target.parent)
    # Not mkdtemp, whose directories only their owner may read: runs are often shared by a group.
    beside.mkdir()
    try:
        yield beside
        sync_tree(beside)
        lock.check()
        try:
            os.rename(beside, target)
        except OSError:
            lock.check()  # what is there may be a successor's
            if not target.is_dir():
                raise
            old = beside.with_name(f"{beside.name}.old")
            os.rename(target, old)
            os.rename(beside, target)
            shutil.rmtree(old, ignore_errors=True)
        sync(target.parent)
    except OSError:
        lock.check()  # a successor removes what its predecessors left unfinished
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_unfinished(target: Path, lock: RunLock) -> None:
    """Remove what owners of earlier generations left beside `target`.

    Args:
        target: the final name.
        lock: the run lock that this process holds.
    """
    named = re.compile(rf"\.{re.escape(target.name)}(?:\.(\d{{6}})(?:\.old)?)?")
    for path in target.parent.glob(f".{target.name}*"):
        found = named.fullmatch(path.name)
        if found and int(found[1] or 0) < lock.generation:
            shutil.rmtree(path, ignore_errors=True)

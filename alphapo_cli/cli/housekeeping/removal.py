"""Removal of directories that commands have written, and of nothing that a process works on.

A run's lock is taken before it goes, so that none can start meanwhile. The directory takes a hidden name first: what a
kill during the removal leaves is no run that looks complete.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from alphapo_cli.cli.housekeeping.entries import LOGS, MODEL, RUN, SWEEP, begun, in_use, is_ours, kind_of
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.state import RunState
from alphapo_cli.storage.run_lock import LockStatus, RunLock, acquire, lock_status


def check(path: Path) -> str:
    """Check that a directory may be removed.

    Args:
        path: the directory.

    Returns:
        Its kind.

    Raises:
        UsageError: no command has written it, it is a link, or a process works on it or on a part of it.
    """
    if path.is_symlink():
        raise UsageError(f"{path}: a link; name what it leads to ({path.resolve()})")
    if not path.is_dir():
        raise UsageError(f"{path}: no such directory; `alphapo ls` lists what can be removed")
    kind = kind_of(path)
    if kind is None or kind == MODEL or not is_ours(path, kind):
        raise UsageError(f"{path}: no run, sweep, generation or evaluation, so nothing in it is removed")
    for run in _runs(path, kind):
        now = lock_status(run.lock)
        if now is not None and now.held:
            busy = _busy(run.path, now)
            raise busy
    for log in (log for place in (path, *(run.path for run in _runs(path, kind))) for log in _logs(place)):
        if in_use(log):
            raise UsageError(f"{log.parent}: a process is writing here; wait for it to end, or stop it")
    return kind


def remove(path: Path, kind: str) -> None:
    """Remove a directory.

    Args:
        path: the directory, which `check` has passed.
        kind: what `check` said that it is.

    Raises:
        UsageError: a process has begun to work on it since, or a part of it stays.
        OSError: the file system refuses.
    """
    with contextlib.ExitStack() as held:
        for run in _runs(path, kind):
            held.enter_context(_locked(run))
        away = path.with_name(f".{path.name}.{secrets.token_hex(4)}.removed")
        os.rename(path, away)
        try:
            shutil.rmtree(away)
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            raise UsageError(
                f"{path}: removed in part ({error.strerror or error}{place}); remove what is left, {away}, by hand"
            ) from error


@contextlib.contextmanager
def _locked(run: RunState) -> Iterator[None]:
    lock = acquire(run.lock)
    if isinstance(lock, LockStatus):
        busy = _busy(run.path, lock)
        raise busy
    assert isinstance(lock, RunLock)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def _busy(path: Path, now: LockStatus) -> UsageError:
    who = f" ({now.owner.description})" if now.owner is not None else ""
    return UsageError(f"{path}: is running{who}; wait for it to end, or stop it")


def _runs(path: Path, kind: str) -> list[RunState]:
    places = [path] if kind == RUN else begun(path) if kind == SWEEP else []  # also what a damaged sweep.json hides
    return [RunState(place) for place in places]


def _logs(path: Path) -> list[Path]:
    """The logs in a directory, and in those of the generations and evaluations that a run keeps inside."""
    return [log for name in LOGS.values() for log in (path / name, *path.glob(f"*/{name}")) if log.is_file()]

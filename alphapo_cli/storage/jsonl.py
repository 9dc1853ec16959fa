"""A file that grows by one JSON line at a time, by one process at a time, and loses nothing that was written.

What is expensive to have again (judgements that were paid for, generated answers) is on disk before the next one is
asked for, so that neither Ctrl-C nor a kill nor a full disk loses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from alphapo_cli.errors import UsageError
from alphapo_cli.storage.atomic import jsonable, write_whole


class InUse(UsageError):
    """Another process is writing the file."""


class LineLog:
    """The file, open for adding within the `with` block; `command` is who says so when another process has it."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self._file: IO[bytes]  # from `__enter__` on

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)
        try:
            _lock(self._file, self.path, self.command)
        except InUse:
            self._file.close()
            raise
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)  # a line that a kill left torn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """One line more; on disk when this returns."""
        line = json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            write_whole(self._file, line.encode("utf-8"))
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # the next line must not be added to a torn one
            raise


def check_free(path: Path, command: str) -> None:
    """Nobody else may be writing the file at `path`.

    Raises:
        InUse: somebody is.
    """
    if not path.is_file():
        return
    # NFS gives an exclusive lock only to who opened the file for writing.
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
        _lock(file, path, command)


def _lock(file: IO[bytes], path: Path, command: str) -> None:
    """Hold `file` until it is closed, where the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(f"{path.parent}: another {command} is writing here; wait for it to end") from error
    except OSError:
        return

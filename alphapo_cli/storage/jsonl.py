"""JSONL files, appended and read so that a kill loses no complete line.

An incomplete last line (the process died while writing it) is left out when reading and truncated before the next
append. `LineLog` is a file that one process at a time appends to, with an fsync after every line: what is expensive to
compute again (judgements that were paid for, generated answers) survives Ctrl-C, a kill and a full disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import jsonable, make_folder, sync


class InUse(UsageError):
    """Another process is writing the file."""


class LineLog:
    """A JSONL file, locked and open for appending within the `with` block.

    Args:
        path: the file.
        command: the command that the message names when another process holds the file.

    Raises:
        InUse: on entering the block, where another process has the file open.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self._file: IO[bytes]  # from `__enter__` on

    def __enter__(self) -> Self:
        make_folder(self.path.parent)
        self._file = open(self.path, "a+b", buffering=0)
        try:
            _lock(self._file, self.path, self.command)
        except InUse:
            self._file.close()
            raise
        end = self._file.seek(0, os.SEEK_END)
        self._file.truncate(_end_of_last_line(self._file, end))  # an incomplete line that a kill left
        sync(
            self.path.parent
        )  # the lines are flushed one by one, which a file without a name on disk would not survive
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append each of `rows` and its checksum as one line; they are on disk when this returns."""
        lines = "".join(json_line(checksums.sealed(row)) for row in rows)
        end = self._file.seek(0, os.SEEK_END)
        try:
            write_whole(self._file, lines.encode("utf-8"))
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # the next line must not be appended to an incomplete one
            raise


def check_free(path: Path, command: str) -> None:
    """Check that no other process has the file at `path` open as a `LineLog`.

    Args:
        path: the file, which need not exist.
        command: the command that the message names.

    Raises:
        InUse: another process is writing the file.
    """
    if not path.is_file():
        return
    # NFS gives an exclusive lock only to who opened the file for writing.
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
        _lock(file, path, command)


def _lock(file: IO[bytes], path: Path, command: str) -> None:
    """Lock `file` until it is closed, where the file system has locks; raises InUse where another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(f"{path.parent}: another {command} is writing here; wait for it to end") from error
    except OSError:
        return


_LONGEST = 256 << 20  # bytes of a line that is read
_TAIL_BLOCK = 1 << 16  # bytes read at a time in search of the last newline


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as a line of a JSONL file."""
    return json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"


def append_jsonl(path: str | os.PathLike[str], *rows: Mapping[str, Any]) -> None:
    """Append a line of JSON for each of `rows`, after truncating an incomplete last line."""
    lines = "".join(json_line(row) for row in rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered and in one call, so that a kill leaves at most one incomplete line, the last.
    with open(target, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        complete = _end_of_last_line(file, end)
        if complete < end:
            file.truncate(complete)
        write_whole(file, lines.encode("utf-8"))


def write_whole(file: Any, data: bytes) -> None:
    """Write all of `data` to the unbuffered `file`: on a nearly full disk write() takes a part without an error."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a file of JSON objects, without an incomplete last line.

    Args:
        path: the file.

    Returns:
        One dict per line, without its checksum. A line of a `LineLog` that has changed since is left out, with a note:
        its work is done again.

    Raises:
        FileNotFoundError: there is no such file.
        AlphapoError: a complete line is not a JSON object, or is longer than any of ours; the message has its number.
    """
    rows: list[dict[str, Any]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), start=1):
            if len(line) > _LONGEST:
                raise AlphapoError(f"{path}, line {number}: longer than {_LONGEST >> 20} MiB; delete the line to go on")
            row = _row(line, f"{path}, line {number}") if line.endswith(b"\n") else None
            if row is not None:
                rows.append(row)
    return rows


def _row(line: bytes, where: str) -> dict[str, Any] | None:
    """The object of a line, without its checksum; None for an empty one and, with a note, for one that has changed."""
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AlphapoError(f"{where}: not JSON ({error}); delete the line to go on") from error
    except RecursionError as error:
        raise AlphapoError(f"{where}: nested too deeply; delete the line to go on") from error
    if not isinstance(row, dict):
        raise AlphapoError(f"{where}: a JSON object was expected; delete the line to go on")
    if checksums.intact(row) is None:
        say(f"note: {where}: has changed since it was written, and is not used", file=sys.stderr)
        return None
    row.pop("checksum", None)
    return row


def _end_of_last_line(file: Any, end: int) -> int:
    """The offset in bytes just after the last newline before `end`, 0 when there is none."""
    position = end
    while position > 0:
        start = max(0, position - _TAIL_BLOCK)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        position = start
    return 0

"""judgements.jsonl: every answer of a judge, on disk before the next one is asked for.

One line an answer, flushed to disk as it arrives, so that neither Ctrl-C nor a kill nor a full disk loses what was
paid for. Answers that could not be used are kept too, for their price alone. A failed request leaves no line.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.base import Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.files import jsonable, read_jsonl

FILE = "judgements.jsonl"


class Answered:
    """What a journal holds: usable rows by key, and the USD spent on all (`priced`: whether every price is known)."""

    def __init__(self, path: Path) -> None:
        rows = read_jsonl(path) if path.is_file() else []
        self.rows: dict[str, Mapping[str, Any]] = {row["key"]: row for row in rows if "top_logprobs" in row}
        self.spent = float(sum(row.get("price") or 0.0 for row in rows))
        self.priced = all(row.get("price") is not None for row in rows)
        self.tokens = int(sum(row.get("tokens") or 0 for row in rows))


class Journal:
    """The file, open for adding; one writer at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)
        try:
            _lock(self._file, self.path)
        except UsageError:
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

    def record(self, ask: Ask, answer: Reply | Unusable) -> None:
        """Add one answer; on disk when this returns."""
        row: dict[str, Any] = {"key": ask.key, "row": ask.row, "switched": ask.switched}
        if isinstance(answer, Reply):
            row |= {"top_logprobs": answer.top_logprobs, "seconds": answer.seconds}
        else:
            row |= {"unusable": answer.reason}
        row |= {"tokens": answer.tokens, "price": answer.price, "date": now()}
        line = json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(line.encode("utf-8"))
        os.fsync(self._file.fileno())


def check_free(folder: Path) -> None:
    """Nobody else may be writing in `folder`.

    Raises:
        UsageError: somebody is.
    """
    if (folder / FILE).is_file():
        with open(folder / FILE, "rb") as file:
            _lock(file, folder / FILE)


def _lock(file: IO[bytes], path: Path) -> None:
    """Hold `file` until it is closed, where the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{path.parent}: another alphapo eval is writing here; wait for it to end") from error
    except OSError:
        return


def now() -> str:
    """The time in UTC, ISO form, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

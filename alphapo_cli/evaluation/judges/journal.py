"""judgements.jsonl: every answer of a judge model, appended as it arrives.

One line per answer, synced to disk, so that neither Ctrl-C nor a kill nor a full disk loses a paid answer. Unusable
answers are recorded for their price. A failed request leaves no line.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.errors import AlphapoError
from alphapo_cli.evaluation.judges.judge import Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.storage.jsonl import LineLog, read_jsonl

FILE = "judgements.jsonl"


class Answered:
    """A journal's content: usable rows by key, tokens, and the USD `spent` on all rows (`priced`: all prices known).

    Args:
        path: of the journal; no file is an empty one.

    Raises:
        AlphapoError: a line is not what `Journal` writes.
    """

    COLUMN: ClassVar[str] = "top_logprobs"  # what a usable row has

    def __init__(self, path: Path) -> None:
        rows = read_jsonl(path) if path.is_file() else []
        for row in rows:
            if not (self._recorded(row) and self._well_formed(row.get(self.COLUMN))):
                start = json.dumps(row, ensure_ascii=False)[:80]
                raise AlphapoError(f"{path}: a line is no judgement of this command ({start}...); delete it to go on")
        self.rows: dict[str, Mapping[str, Any]] = {row["key"]: row for row in rows if self.COLUMN in row}
        self.spent = float(sum(row.get("price") or 0.0 for row in rows))
        self.priced = all(row.get("price") is not None for row in rows)
        self.tokens = int(sum(row.get("tokens") or 0 for row in rows))

    @staticmethod
    def _recorded(row: Mapping[str, Any]) -> bool:
        """Whether a row has what `Journal.record` writes for every answer."""
        counts = all(row.get(name) is None or isinstance(row[name], int | float) for name in ("tokens", "price"))
        return isinstance(row.get("key"), str) and isinstance(row.get("row"), int) and "switched" in row and counts

    @classmethod
    def _well_formed(cls, value: Any) -> bool:
        """Whether a row's column, None without one, holds what `Journal.record` writes."""
        if value is None:
            return True
        pairs = value if isinstance(value, list) else [None]
        return all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int | float)
            for pair in pairs
        )


class Journal(LineLog):
    """judgements.jsonl in `folder`, open for appending by one writer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / FILE, "alphapo eval")

    def record(self, ask: Ask, answer: Reply | Unusable) -> None:
        """Append one answer; it is on disk when this returns."""
        row: dict[str, Any] = {"key": ask.key, "row": ask.row, "switched": ask.switched}
        if isinstance(answer, Reply):
            row |= {"top_logprobs": answer.top_logprobs, "seconds": answer.seconds}
        else:
            row |= {"unusable": answer.reason}
        self.add({**row, "tokens": answer.tokens, "price": answer.price, "date": now()})


def now() -> str:
    """The time in UTC, ISO form, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

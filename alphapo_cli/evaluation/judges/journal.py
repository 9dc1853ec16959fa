"""judgements.jsonl: every answer of a judge model, appended as it arrives.

One line per answer, synced to disk, so that neither Ctrl-C nor a kill nor a full disk loses a paid answer. Unusable
answers are recorded for their price. A failed request leaves no line.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.evaluation.judges.judge import Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.storage.jsonl import LineLog, read_jsonl

FILE = "judgements.jsonl"


class Answered:
    """A journal's content: usable rows by key, tokens, and the USD `spent` on all rows (`priced`: all prices known)."""

    COLUMN: ClassVar[str] = "top_logprobs"  # what a usable row has

    def __init__(self, path: Path) -> None:
        rows = read_jsonl(path) if path.is_file() else []
        self.rows: dict[str, Mapping[str, Any]] = {row["key"]: row for row in rows if self.COLUMN in row}
        self.spent = float(sum(row.get("price") or 0.0 for row in rows))
        self.priced = all(row.get("price") is not None for row in rows)
        self.tokens = int(sum(row.get("tokens") or 0 for row in rows))


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

"""judgements.jsonl: every answer of a judge, on disk before the next one is asked for.

One line an answer, flushed to disk as it arrives, so that neither Ctrl-C nor a kill nor a full disk loses what was
paid for. Answers that could not be used are kept too, for their price alone. A failed request leaves no line.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.evaluation.judges.judge import Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.storage.jsonl import LineLog, read_jsonl

FILE = "judgements.jsonl"


class Answered:
    """What a journal holds: usable rows by key, and the USD spent on all (`priced`: whether every price is known)."""

    def __init__(self, path: Path) -> None:
        rows = read_jsonl(path) if path.is_file() else []
        self.rows: dict[str, Mapping[str, Any]] = {row["key"]: row for row in rows if "top_logprobs" in row}
        self.spent = float(sum(row.get("price") or 0.0 for row in rows))
        self.priced = all(row.get("price") is not None for row in rows)
        self.tokens = int(sum(row.get("tokens") or 0 for row in rows))


class Journal(LineLog):
    """The file in `folder`, open for adding; one writer at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / FILE, "alphapo eval")

    def record(self, ask: Ask, answer: Reply | Unusable) -> None:
        """Add one answer; on disk when this returns."""
        row: dict[str, Any] = {"key": ask.key, "row": ask.row, "switched": ask.switched}
        if isinstance(answer, Reply):
            row |= {"top_logprobs": answer.top_logprobs, "seconds": answer.seconds}
        else:
            row |= {"unusable": answer.reason}
        self.add({**row, "tokens": answer.tokens, "price": answer.price, "date": now()})


def now() -> str:
    """The time in UTC, ISO form, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

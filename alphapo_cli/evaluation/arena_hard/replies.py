"""A judge's text: the record of one answer, in memory and in judgements.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.evaluation.judges.journal import Answered, Journal, now
from alphapo_cli.evaluation.judges.judge import Reply, Unusable
from alphapo_cli.evaluation.judges.protocol import Ask


@dataclass(frozen=True)
class TextReply(Reply):
    """An engine's text. `finish`: why it ended, "length" at the token limit; None if unknown."""

    text: str = ""
    finish: str | None = None


class TextAnswered(Answered):
    """A journal's content: rows with a text."""

    COLUMN: ClassVar[str] = "text"

    @classmethod
    def _well_formed(cls, value: Any) -> bool:
        return value is None or isinstance(value, str)


class TextJournal(Journal):
    """judgements.jsonl with texts in place of log-probs; `max_tokens`: the limit of this session's texts."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        super().__init__(folder)
        self.max_tokens = max_tokens

    def record(self, ask: Ask, answer: Reply | Unusable) -> None:
        """Append one answer; it is on disk when this returns."""
        if not isinstance(answer, TextReply):
            super().record(ask, answer)
            return
        row: dict[str, Any] = {"key": ask.key, "row": ask.row, "switched": ask.switched, "text": answer.text}
        row |= {
            "finish": answer.finish,
            "max_tokens": self.max_tokens,
            "seconds": answer.seconds,
            "tokens": answer.tokens,
            "price": answer.price,
        }
        self.add({**row, "date": now()})

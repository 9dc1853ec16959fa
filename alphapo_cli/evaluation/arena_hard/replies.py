"""A judge's text: the record of one answer, in memory and in judgements.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
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


class TextJournal(Journal):
    """judgements.jsonl with texts in place of log-probs."""

    def record(self, ask: Ask, answer: Reply | Unusable) -> None:
        """Append one answer; it is on disk when this returns."""
        if not isinstance(answer, TextReply):
            super().record(ask, answer)
            return
        row: dict[str, Any] = {"key": ask.key, "row": ask.row, "switched": ask.switched, "text": answer.text}
        row |= {"finish": answer.finish, "seconds": answer.seconds, "tokens": answer.tokens, "price": answer.price}
        self.add({**row, "date": now()})

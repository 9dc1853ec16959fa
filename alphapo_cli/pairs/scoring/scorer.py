"""The interface of scorers: prompts with answers to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from alphapo_cli.pairs.candidates import Candidates

Scores = list[list[float | None]]  # for each prompt a number per answer; None: not scored


class Scorer(Protocol):
    """Gives every answer a number.

    Attributes:
        column: name of its column.
        together: whether it reads all answers to a prompt at once; otherwise each by itself.
        batch: prompts of one call of `score` (answers, where they are read by themselves); None: all in one call.
        free: whether it costs nothing, so that its numbers are not kept.
    """

    column: str
    together: bool
    batch: int | None
    free: bool

    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on besides the answers; no secrets."""
        ...

    def check(self, prompts: Sequence[Candidates]) -> None:
        """Check, before any model loads, that prompts like these can be scored; their answers need not exist yet.

        Raises:
            UsageError: they cannot.
        """
        ...

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """Score a batch. A model is loaded by the first call.

        Raises:
            UsageError: a model or a rule does not do what a scorer needs.
            AlphapoError: it failed; what was scored before is kept.
        """
        ...

    def shortened(self, prompts: Sequence[Candidates]) -> int:
        """The number of answers that were scored behind a prompt without its beginning."""
        ...

    def close(self) -> None:
        """Free what the scorer holds, such as a model."""
        ...


class Whole:
    """Scorers that read an input whole or not at all."""

    def shortened(self, prompts: Sequence[Candidates]) -> int:
        """See `Scorer.shortened`."""
        return 0


class Plain(Whole):
    """What scorers without a model have in common."""

    together = False
    batch: int | None = None
    free = True

    def __init__(self, column: str) -> None:
        self.column = column

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`."""

    def close(self) -> None:
        """See `Scorer.close`."""

"""What every judge is: something that turns pairs into verdicts.

Judge           replay, glassbox: verdicts at once, free
└── ModelJudge  a language model behind an Engine: asks.py keeps the journal and the protocol, the engine answers
    Engine      openai (an endpoint), vllm (a process of its own)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alphapo_cli.evaluation.judges.protocol import Ask, Pair


@dataclass(frozen=True)
class Verdict:
    """A row's judgement as annotations.json wants it; price in USD, seconds of waiting, date in ISO form."""

    preference: float | None
    raw: Any = None
    price: float | None = None
    seconds: float | None = None
    date: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A verdict for each pair (None: the judge has none, the row is left out) and facts for results.json."""

    verdicts: list[Verdict | None]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """`annotator`: the name in annotations.json."""

    annotator: str

    def identity(self) -> dict[str, Any]:
        """Everything a verdict depends on besides the pair; no secrets."""
        ...

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        """Find out before any work what would fail.

        Raises:
            UsageError: a missing key, an endpoint that cannot be reached, a cost above the limit, ...
        """
        ...

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        """Judge every pair; what is paid for is kept in `folder` as it arrives. Not `asking`: what may fail is left out.

        Raises:
            AlphapoError: some judgements failed; the same call continues.
            Interrupted: Ctrl-C or SIGTERM; the same call continues.
        """
        ...


@dataclass(frozen=True)
class Reply:
    """An engine's answer to one `Ask`: log-probs of the first token, (token, natural log), best first.

    tokens: prompt and completion together; price: USD; both None where unknown.
    """

    top_logprobs: tuple[tuple[str, float], ...]
    tokens: int | None = None
    price: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Unusable:
    """An answer that cost something and says nothing (no log-probs, broken JSON)."""

    reason: str
    tokens: int | None = None
    price: float | None = None


Record = Callable[[Ask, Reply | Unusable], None]


@dataclass
class JudgingResult:
    """How asking ended. failed: reason by key; stopped: why the rest was not asked, None when all were."""

    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    interrupted: bool = False


class JudgeEngine(Protocol):
    """Something that answers questions: an endpoint, or a model in a process of its own."""

    def identity(self) -> dict[str, Any]:
        """Model and settings that decide its answers; no secrets."""
        ...

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """As `Judge.check`, for the questions that are left; `spent`: USD so far."""
        ...

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> JudgingResult:
        """Answer all, in any order; `record` keeps each as it arrives. Failures are returned, not raised."""
        ...

"""The interfaces of judges and of the engines behind judge models.

Judge            replay, glassbox: immediate and free
└── ModelJudge   a language model: `model_judge` implements protocol and journal, a JudgeEngine runs the model
    JudgeEngine  openai (an endpoint), vllm (a child process)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alphapo_cli.evaluation.judges.protocol import Ask, Pair
from alphapo_cli.generation.thinking import Thinking


@dataclass(frozen=True)
class Verdict:
    """A row's judgement in annotations.json's terms; price in USD, seconds of latency, date in ISO form."""

    preference: float | None
    raw: Any = None
    price: float | None = None
    seconds: float | None = None
    date: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A verdict for each pair (None: no judgement, the row is left out) and further fields of results.json."""

    verdicts: list[Verdict | None]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Compares two outputs per instruction. `annotator`: its name in annotations.json."""

    annotator: str

    def identity(self) -> dict[str, Any]:
        """Everything that verdicts depend on besides the pairs; no secrets."""
        ...

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        """Check before any work that judging can succeed.

        Args:
            pairs: what will be judged.
            folder: directory with the journal of earlier judgements.
            asking: query every missing judgement; otherwise up to judge.max_failed missing ones are left out.

        Raises:
            UsageError: a key is missing, the endpoint cannot be reached, the cost is above the limit, ...
        """
        ...

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        """Judge every pair.

        Args:
            pairs: what is judged.
            folder: directory of the journal, to which paid answers are appended as they arrive.
            asking: see `check`.

        Returns:
            A verdict for each pair.

        Raises:
            AlphapoError: more judgements failed than may; the same call resumes.
            Interrupted: Ctrl-C or SIGTERM arrived; the same call resumes.
        """
        ...


@dataclass(frozen=True)
class Reply:
    """An engine's answer to one `Ask`.

    Attributes:
        top_logprobs: (token, log-prob in nats) of the first token's alternatives, best first.
        tokens: of prompt and completion together, None if unknown.
        price: in USD, None if unknown.
        seconds: latency of the request.
    """

    top_logprobs: tuple[tuple[str, float], ...]
    tokens: int | None = None
    price: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Unusable:
    """An answer that was paid for but has no usable log-probs."""

    reason: str
    tokens: int | None = None
    price: float | None = None


Record = Callable[[Ask, Reply | Unusable], None]


@dataclass
class JudgingResult:
    """How querying ended. `failed`: reason by key; `stopped`: why the rest was not queried, None if all were."""

    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    interrupted: bool = False


class JudgeEngine(Protocol):
    """Runs the judge model: at an endpoint, or in a child process."""

    def identity(self) -> dict[str, Any]:
        """Model and settings that determine its answers; no secrets."""
        ...

    def thinking(self) -> Thinking:
        """What the judge's chat template has to do with thoughts; nothing where it is not known."""
        ...

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """See `Judge.check`; `asks`: the unanswered questions, `spent`: USD so far."""
        ...

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> JudgingResult:
        """Query all, in any order; `record` is called with each answer. Failures are returned, not raised."""
        ...

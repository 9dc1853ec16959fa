"""A prompt and its answers with their scores, from which pairs are made."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from alphapo_cli.data.text_pairs import digest
from alphapo_cli.errors import UsageError

GIVEN, SIDES = "given", ("chosen", "rejected")  # the column that says which answers are a pair of the data
SCORED_BY = "scored_by"  # the name of the column whose list is called scores
SELF = "self"  # the source of the answers of the model that is sampled
# Margins and squares of numbers up to here are finite in float64.
LARGEST_SCORE = 1e150
NO_SCORE = f"not a number between -{LARGEST_SCORE:g} and {LARGEST_SCORE:g}"


def is_score(value: Any) -> bool:
    """Whether pairs can be made by a value: a number whose margins and squares are finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SCORE


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: the answer.
        number: its number among those of its source, from 0.
        source: who gave it: `SELF`, or the name of a file.
        ids: sampled token ids without the end token; None where only the text is known.
        cut: whether the token limit ended it.
        logprob: summed log-prob in nats under its sampler; None where it is not known.
        scores: column -> number; an answer that was not scored lacks the column.
        features: a vector, for D-optimal selection.
    """

    text: str
    number: int = 0
    source: str = SELF
    ids: tuple[int, ...] | None = None
    cut: bool = False
    logprob: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    features: tuple[float, ...] | None = None

    def length(self, unit: str) -> int:
        """Length in chars, words or tokens; UsageError for tokens of an answer whose ids are not known."""
        if unit == "chars":
            return len(self.text)
        if unit == "words":
            return len(self.text.split())
        if self.ids is None:
            raise UsageError(
                "length in tokens: these answers were read as texts, and their token ids are not known; give "
                "lengths in chars or words"
            )
        return len(self.ids)


@dataclass(frozen=True)
class Candidates:
    """A prompt with its answers.

    Attributes:
        content: text, or a list of messages.
        answers: by source and number, so that their order depends on no file's.
        context: what the chat template gets beside the messages, as columns of a row (system, tools, ...).
        columns: further values of the row, such as its topic.
        ids: token ids of the prompt as the sampler read them; None where they are not known.
        given: positions of the chosen and the rejected answer in `answers`, of a row that is a pair already.
        where: file and row, for messages.
    """

    content: Any
    answers: tuple[Answer, ...]
    context: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] | None = None
    given: tuple[int, int] | None = None
    where: str = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as messages: a text is one user message."""
        if isinstance(self.content, str):
            return [{"role": "user", "content": self.content}]
        return [dict(message) for message in self.content]

    @functools.cached_property
    def key(self) -> str:
        """Hash by which rows are joined: equal for a text and for the user message that holds it.

        Given pairs are joined with nothing: their answers count, too.
        """
        pair = [] if self.given is None else [[self.answers[i].text for i in self.given]]
        return digest([self.messages, dict(self.context), *pair])

    @property
    def held(self) -> list[Any]:
        """Everything that was read: what pairs and scores may depend on."""
        answers = [
            [a.text, a.number, a.source, a.ids, a.cut, dict(sorted(a.scores.items())), a.features] for a in self.answers
        ]
        return [self.messages, dict(self.context), dict(self.columns), self.given, answers]

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])

    def rng(self, seed: int, use: str) -> Random:
        """A generator that depends on the prompt, not on its place."""
        return Random(f"{seed} {use} {self.key}")


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))

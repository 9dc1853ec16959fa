"""Preference pairs before tokenisation.

A pair has one prompt and two answers, or more, or a single answer with the other side absent. All are text, or all are
message lists. An answer as messages is one assistant message, because turns that both sides share are part of the
prompt; with `data.trajectories` it is a conversation whose first and last turn are the assistant's. Dialogues in the
HH-RLHF form are messages that also keep their exact text for tokenizers without a chat template.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
Conversation = tuple[Message, ...]
Side = str | Conversation

ABSENT: Side = ()  # the side that an unpaired row does not have
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Verbatim:
    """The exact text of a dialogue: `prompt + chosen` and `prompt + rejected` are the source strings."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TextPair:
    """One prompt with its chosen and its rejected answer.

    Attributes:
        prompt: text or messages.
        chosen: preferred answer; `ABSENT` in an unpaired row with an undesirable answer.
        rejected: dispreferred answer; `ABSENT` in an unpaired row with a desirable answer.
        columns: the source row's other numeric columns, such as a reward model's scores.
        row: number in the source, from 1; used in messages only.
        verbatim: exact text of a dialogue.
        others: sides 2, 3, ... of a row with more than two answers; all rows of a source have equally many.
    """

    prompt: Side
    chosen: Side
    rejected: Side
    columns: Mapping[str, float] = field(default_factory=dict)
    row: int = 0
    verbatim: Verbatim | None = None
    others: tuple[Side, ...] = ()

    @property
    def sides(self) -> tuple[Side, ...]:
        """Chosen, rejected and further answers."""
        return (self.chosen, self.rejected, *self.others)

    @property
    def answers(self) -> tuple[Side, ...]:
        """The sides that are not absent."""
        return tuple(side for side in self.sides if side != ABSENT)

    @property
    def prompt_key(self) -> str:
        """Hex SHA-256 of the prompt's canonical JSON: equal for equal prompts, whatever the source."""
        return digest(self.prompt)

    @functools.cached_property
    def content_key(self) -> str:
        """Hex SHA-256 of all text that is tokenised."""
        exact = None if self.verbatim is None else [self.verbatim.prompt, self.verbatim.chosen, self.verbatim.rejected]
        more = [self.others] if self.others else []
        return digest([self.prompt, self.chosen, self.rejected, exact, *more])


@dataclass(frozen=True)
class LoadCounts:
    """Numbers of rows: all, and those left out by reason. Of `duplicates` only `duplicates_dropped` are left out.

    `tied`: lists of answers with equal scores.
    """

    read: int = 0
    no_common_prompt: int = 0
    emptied: int = 0
    identical: int = 0
    duplicates: int = 0
    duplicates_dropped: int = 0
    tied: int = 0


@dataclass(frozen=True)
class LoadedPairs:
    """Usable pairs in source order. `form`: see `row_formats`; `description`: their source, for messages."""

    pairs: list[TextPair]
    counts: LoadCounts
    description: str
    form: str

    @property
    def num_sides(self) -> int:
        """Number of sides of every pair, absent ones included."""
        return len(self.pairs[0].sides)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TextPair]:
        return iter(self.pairs)


def canonical(value: Any) -> str:
    """Canonical JSON (sorted keys, no spaces), equal for equal values."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()

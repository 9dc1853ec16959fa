"""What a preference pair is before it is tokenised.

A pair has one prompt and two answers, perhaps further ones, or one answer alone with the other side absent. All are
text, or all are message lists; an answer of the second kind is one assistant message, because turns that both sides
share are part of the prompt, or with `data.trajectories` a conversation that an assistant begins and ends. Dialogues in
the HH-RLHF form are messages that also keep their exact text, so that a tokenizer without chat template sees the
dialogue as it was written.
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
    """One prompt with the preferred and the other answer.

    `columns` holds the source row's further numeric columns (a reward model's scores, say); `row` counts from 1 in the
    source and is used in messages only. `verbatim` is set for dialogues. `others`: sides 2, 3, ... where a row has more
    than two answers; those of every row of a source are as many. An unpaired row has `ABSENT` for a side.
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
        """Chosen, rejected and the others."""
        return (self.chosen, self.rejected, *self.others)

    @property
    def answers(self) -> tuple[Side, ...]:
        """`sides` without an absent one."""
        return tuple(side for side in self.sides if side != ABSENT)

    @property
    def prompt_key(self) -> str:
        """Hex SHA-256 of the prompt's canonical JSON: equal for equal prompts, whatever the source."""
        return digest(self.prompt)

    @functools.cached_property
    def content_key(self) -> str:
        """Hex SHA-256 of everything that becomes tokens."""
        exact = None if self.verbatim is None else [self.verbatim.prompt, self.verbatim.chosen, self.verbatim.rejected]
        more = [self.others] if self.others else []
        return digest([self.prompt, self.chosen, self.rejected, exact, *more])


@dataclass(frozen=True)
class LoadCounts:
    """Rows read, and what became of those that are not among the pairs. `duplicates` are dropped only on request.

    `tied`: lists of answers that all have one score.
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
    """Usable pairs in source order. `form` as in `forms`; `description` says where they come from."""

    pairs: list[TextPair]
    counts: LoadCounts
    description: str
    form: str

    @property
    def num_sides(self) -> int:
        return len(self.pairs[0].sides)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TextPair]:
        return iter(self.pairs)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()

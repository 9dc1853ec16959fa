"""What a preference pair is before it is tokenised.

A pair has one prompt and two answers. All three are text, or all three are message lists; an answer of the second
kind is exactly one assistant message, because turns that both sides share are part of the prompt. Dialogues in the
HH-RLHF form are messages that also keep their exact text, so that a tokenizer without chat template sees the
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
    source and is used in messages only. `verbatim` is set for dialogues.
    """

    prompt: Side
    chosen: Side
    rejected: Side
    columns: Mapping[str, float] = field(default_factory=dict)
    row: int = 0
    verbatim: Verbatim | None = None

    @property
    def prompt_key(self) -> str:
        """Hex SHA-256 of the prompt's canonical JSON: equal for equal prompts, whatever the source."""
        return digest(self.prompt)

    @functools.cached_property
    def content_key(self) -> str:
        """Hex SHA-256 of everything that becomes tokens."""
        exact = None if self.verbatim is None else [self.verbatim.prompt, self.verbatim.chosen, self.verbatim.rejected]
        return digest([self.prompt, self.chosen, self.rejected, exact])


@dataclass(frozen=True)
class LoadCounts:
    """Rows read, and what became of those that are not among the pairs. `duplicates` are dropped only on request."""

    read: int = 0
    no_common_prompt: int = 0
    emptied: int = 0
    identical: int = 0
    duplicates: int = 0
    duplicates_dropped: int = 0


@dataclass(frozen=True)
class LoadedPairs:
    """Usable pairs in source order. `form` is pairs, messages or dialogue; `description` says where they come from."""

    pairs: list[TextPair]
    counts: LoadCounts
    description: str
    form: str

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

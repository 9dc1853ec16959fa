"""Preference pairs before tokenisation.

A pair has one prompt and two answers, or more, or a single answer with the other side absent. All are text, or all are
message lists. An answer as messages is one assistant message, because turns that both sides share are part of the
prompt; with `data.trajectories` it is a conversation whose first and last turn are the assistant's. Dialogues in the
HH-RLHF form are messages that also keep their exact text for tokenizers without a chat template.

A message keeps every key that is not null, for the chat template to read; a row's tools, documents, system text and
template arguments are its `PromptContext`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from alphapo_cli.data.tally import Tally

Message = dict[str, Any]  # role and content, which are text, and further keys with JSON values
Conversation = tuple[Message, ...]
Side = str | Conversation
S = TypeVar("S", str, Conversation, Side)

ABSENT: Side = ()  # the side that an unpaired row does not have
SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function", "ipython")  # what a tool returned
ROLES = (*SYSTEM_ROLES, "user", "assistant", *TOOL_ROLES)
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls",)  # function_call is read as one of these
ANSWER_KEYS = (*CALLS, *REASONING, "refusal")  # beside content, what an answer may consist of
# Keys that make two messages different ones. Others (ids, dates, languages) go to the template and decide nothing else.
ESSENTIAL = ("role", "content", "name", *ANSWER_KEYS)


@dataclass(frozen=True)
class PromptContext:
    """What a row gives the chat template beside its messages.

    Attributes:
        system: system text of the row, for a conversation that begins with none.
        arguments: further arguments by name: tools, documents, and those of the column chat_template_kwargs.
    """

    system: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.arguments)

    @property
    def content(self) -> list[Any]:
        """The context as JSON values, for hashes."""
        return [self.system, dict(self.arguments)]


NO_CONTEXT = PromptContext()


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
        context: what the row gives the chat template beside its messages.
        where: file and row, for messages.
        source: position of its source among those of a mixture.
        subset: name of its subset; "" for none.
    """

    prompt: Side
    chosen: Side
    rejected: Side
    columns: Mapping[str, float] = field(default_factory=dict)
    row: int = 0
    verbatim: Verbatim | None = None
    others: tuple[Side, ...] = ()
    context: PromptContext = NO_CONTEXT
    where: str = field(default="", compare=False)
    source: int = field(default=0, compare=False)
    subset: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """File and row, for messages."""
        return self.where or f"row {self.row}"

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
        prompt = essential(self.prompt)
        return digest([prompt, self.context.content] if self.context else prompt)

    @functools.cached_property
    def content_key(self) -> str:
        """Hex SHA-256 of prompt and answers; pairs with the same one are duplicates."""
        prompt, chosen, rejected, *others = map(essential, (self.prompt, *self.sides))
        exact = None if self.verbatim is None else [self.verbatim.prompt, self.verbatim.chosen, self.verbatim.rejected]
        more: list[Any] = [others] if others else []
        more += [{"context": self.context.content}] if self.context else []
        return digest([prompt, chosen, rejected, exact, *more])

    @property
    def template_key(self) -> str:
        """`content_key`, or where messages have further keys, a digest that covers them: of all that is rendered."""
        sides = (self.prompt, *self.sides)
        return self.content_key if all(essential(s) == s for s in sides) else digest([self.content_key, sides])


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

    def __add__(self, other: LoadCounts) -> LoadCounts:
        return LoadCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class SourceReport:
    """One source of a mixture: its name, its rows and usable pairs, and the files that were read and left.

    Attributes:
        name: short name, of its own among the sources.
        read: rows.
        usable: pairs before tokenisation.
        files: names of the files that were read.
        splits: names of the splits that they are.
        left: numbers of files of the splits that were not read.
        unread: files beside them that belong to no split or are of no known type.
    """

    name: str
    read: int = 0
    usable: int = 0
    files: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedPairs:
    """Usable pairs in source order.

    Attributes:
        pairs: the pairs; `TextPair.source` says which of `sources` each is from.
        counts: numbers of rows read and left out.
        description: their source, for messages.
        form: see `row_formats`; of several sources with different forms, all joined by " + ".
        unread: rows by column or key that nobody reads.
        numbers: rows by column of numbers, which only some objectives read.
        sources: the sources; none for pairs that are not read from files or the hub.
    """

    pairs: list[TextPair]
    counts: LoadCounts
    description: str
    form: str
    unread: Tally = field(default_factory=Tally)
    numbers: Tally = field(default_factory=Tally)
    sources: tuple[SourceReport, ...] = ()

    @property
    def num_sides(self) -> int:
        """Number of sides of every pair, absent ones included."""
        return len(self.pairs[0].sides)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TextPair]:
        return iter(self.pairs)


def essential(side: S) -> S:
    """A side whose messages have their `ESSENTIAL` keys alone."""
    if isinstance(side, str) or all(key in ESSENTIAL for message in side for key in message):
        return side
    return tuple({key: value for key, value in message.items() if key in ESSENTIAL} for message in side)


def canonical(value: Any) -> str:
    """Canonical JSON (sorted keys, no spaces), equal for equal values."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()

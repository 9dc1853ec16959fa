"""A prompt to generate an answer to, what it is called, and what its seeds are made of.

A prompt is known by its messages: one that is repeated is answered once. `instruction` names a row of model_outputs.json
in every later step, so of two conversations that read the same as text each is written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import conversation_of
from alphapo_cli.data.text_pairs import (
    ANSWER_KEYS,
    NO_CONTEXT,
    Conversation,
    PromptContext,
    Side,
    TextPair,
    digest,
    essential,
)

_BARE = DataConfig()


@dataclass(frozen=True)
class Prompt:
    """One prompt: `side` under a chat template, `plain` without one (None: it needs a template).

    `context`: what the row gives the template beside the messages; `continued`: whether the last message is the beginning
    of the answer; `where`: file and row, for messages.
    """

    instruction: str
    side: Side
    dataset: str
    plain: str | None = None
    context: PromptContext = NO_CONTEXT
    continued: bool = False
    where: str = ""

    @property
    def key(self) -> str:
        """Digest of all that makes it another prompt."""
        more = ["continued"] if self.continued else []
        # A system text is the same, be it in a column or in the messages.
        messages = conversation_of(self.side, _BARE, self.context)
        return digest([self.instruction, essential(messages), [None, dict(self.context.arguments)], *more])

    @property
    def seed_text(self) -> str:
        """What the seeds of its answers are made of: its text, or where that is not all of it, its messages.

        Unlike `instruction` it does not depend on the other prompts.
        """
        messages = conversation_of(self.side, _BARE, self.context)
        if not self.context and (self.plain is not None or _is_text(messages)):
            return self.instruction
        return _as_json(messages, self.context)


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in source order.

    Attributes:
        rows: the prompts.
        description: their source.
        repeated: rows dropped as repetitions.
        answered: rows that end with an assistant turn, which is left out.
        unread: rows by column that nobody reads.
        read: all rows.
    """

    rows: tuple[Prompt, ...]
    description: str
    repeated: int = 0
    answered: int = 0
    unread: Tally = field(default_factory=Tally)
    read: int = 0


def named_apart(prompts: list[Prompt]) -> tuple[Prompt, ...]:
    """The prompts; of several that read the same, all but a single text are named by their JSON."""
    times: dict[str, int] = {}
    for prompt in prompts:
        times[prompt.instruction] = times.get(prompt.instruction, 0) + 1

    def named(prompt: Prompt) -> Prompt:
        messages = conversation_of(prompt.side, _BARE, prompt.context)
        if times[prompt.instruction] == 1 or (_is_text(messages) and not prompt.context):
            return prompt
        return replace(prompt, instruction=_as_json(messages, prompt.context))

    return tuple(map(named, prompts))


def of_pair(pair: TextPair, dataset: str) -> Prompt:
    """The prompt of a pair, as training reads it."""
    if pair.verbatim is not None:  # a dialogue: messages under a chat template, its own text without one
        return Prompt(pair.verbatim.prompt, pair.prompt, dataset, pair.verbatim.prompt, pair.context, where=pair.place)
    side = pair.prompt
    text = as_text(conversation_of(side, _BARE, pair.context))
    return Prompt(text, side, dataset, side if isinstance(side, str) else None, pair.context, where=pair.place)


def of_pairs(pairs: Sequence[TextPair], dataset: str, description: str) -> Prompts:
    """The distinct prompts of pairs, in their order."""
    prompts: dict[str, Prompt] = {}
    for pair in pairs:
        prompt = of_pair(pair, dataset)
        prompts.setdefault(prompt.key, prompt)
    rows = named_apart(list(prompts.values()))
    return Prompts(rows, description, len(pairs) - len(rows), read=len(pairs))


def _is_text(messages: Conversation) -> bool:
    """Whether a conversation is one text of a user, and nothing else."""
    return len(messages) == 1 and messages[0]["role"] == "user" and messages[0].keys() <= {"role", "content"}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _as_json(messages: Conversation, context: PromptContext) -> str:
    """A conversation and what its row gives the template beside it."""
    arguments = {"arguments": dict(context.arguments)} if context.arguments else {}
    return _json({"messages": messages, **arguments})


def as_text(messages: Conversation) -> str:
    """A conversation as one text: the only message itself, or every turn with its role; tool calls as JSON."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = []
    for message in messages:
        more = [_json(message[key]) for key in ANSWER_KEYS if key in message]
        turns.append(f"{message['role'].capitalize()}: {' '.join(filter(None, [message['content'], *more]))}")
    return "\n\n".join(turns)

"""AlpacaEval 2's pairwise judging protocol as pure functions, independent of the engine.

The judge sees both outputs in one prompt, the first called "m" and the second "M", and replies with one of the two
names. Its preference is computed from the log-probs of the first token, not from the sampled one: P(m) = e^m / (e^m +
e^M), where a token outside the top log-probs has probability 0. A random draw that depends on the instruction alone
decides which output comes first. Source: alpaca_eval 0.6.6, annotator weighted_alpaca_eval_gpt4_turbo.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import read_text
from alphapo_cli.evaluation.judges.prompt import DEFAULT_PROMPT

FIRST, SECOND = "m", "M"
DRAW = 1.5
PLACES = ("instruction", "output_1", "output_2")
_START, _END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Pair:
    """Two outputs to compare: output_1 is the reference's, output_2 the model's."""

    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Message:
    """A chat message."""

    role: str
    content: str


@dataclass(frozen=True)
class Template:
    """A prompt as chat messages with the three placeholders `PLACES`; `text`: its source text."""

    messages: tuple[Message, ...]
    text: str


@dataclass(frozen=True)
class Ask:
    """One question to the judge. `row`: index of the pair; `switched`: the model's output comes first; `key`: hash."""

    row: int
    switched: bool
    messages: tuple[Message, ...]
    key: str


TopLogProbs = Sequence[tuple[str, float]]  # (token, natural log-prob) of the first answer token, best first


def load_template(path: str | None) -> Template:
    """Load a judge prompt.

    Args:
        path: file in AlpacaEval's template format; None: alphapo's default prompt.

    Returns:
        The template.

    Raises:
        UsageError: the file is unreadable, or lacks one of {instruction}, {output_1}, {output_2}.
    """
    text = DEFAULT_PROMPT if path is None else read_text(Path(path).expanduser())
    missing = [f"{{{place}}}" for place in PLACES if f"{{{place}}}" not in text]
    if missing:
        raise UsageError(f"judge.prompt_file={path}: the template lacks {' and '.join(missing)}")
    return Template(split_chat(text, path), text)


def split_chat(text: str, path: str | None = None) -> tuple[Message, ...]:
    """Split a ChatML prompt into messages; text without markers is one user message.

    Args:
        text: the prompt.
        path: its file, for messages.

    Returns:
        The messages, with white space around them stripped.

    Raises:
        UsageError: a marker has no counterpart.
    """
    if _START not in text:
        return (Message("user", text.strip()),)
    messages = []
    for part in text.split(_START)[1:]:
        role, newline, rest = part.partition("\n")
        content, end, _ = rest.partition(_END)
        if not newline or not end or not role.strip():
            raise UsageError(f"judge.prompt_file={path}: {_START} needs a role, a line break, the text and {_END}")
        messages.append(Message(role.strip(), content.strip()))
    return tuple(messages)


def fill(template: Template, instruction: str, first: str, second: str) -> tuple[Message, ...]:
    """Fill a template: the first occurrence of each placeholder is replaced, in the order of `PLACES`, unescaped.

    The template is split into messages before, so that a ChatML marker inside an output cannot open a message.

    Args:
        template: the judge prompt.
        instruction: what was asked.
        first: the output called "m".
        second: the output called "M".

    Returns:
        The messages for one pair.
    """
    contents = [message.content for message in template.messages]
    for place, text in zip(PLACES, (instruction, first, second), strict=True):
        mark = f"{{{place}}}"
        at = next((i for i, content in enumerate(contents) if mark in content), None)
        if at is not None:
            contents[at] = contents[at].replace(mark, text, 1)
    return tuple(
        Message(message.role, content.strip()) for message, content in zip(template.messages, contents, strict=True)
    )


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether the model's output is shown first: AlpacaEval's random draw (there with annotator seed 0)."""
    # A text seed gives the same stream in every Python version; `choices` uses one random().
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def probability_first(top: TopLogProbs) -> float | None:
    """P(m) from the top log-probs of the first token; None if they contain neither name."""
    logprobs: dict[str, float] = {}
    for token, logprob in top:
        if token in (FIRST, SECOND):
            logprobs.setdefault(token, logprob)
    if not logprobs:
        return None
    gap = logprobs.get(SECOND, -math.inf) - logprobs.get(FIRST, -math.inf)
    if math.isnan(gap):  # both minus infinity
        return None
    # sigmoid(-gap), without overflow for any gap.
    return 0.5 * (1.0 - math.tanh(0.5 * gap))


def preference(top: TopLogProbs, switched: bool) -> float | None:
    """Preference from 1 (reference better) to 2 (model better); None if the top log-probs contain neither name."""
    p = probability_first(top)
    if p is None:
        return None
    shown = 2.0 - p
    return 3.0 - shown if switched else shown


def asks(
    pairs: Sequence[Pair], template: Template, *, seed: int, both_orders: bool, fingerprint: str
) -> dict[int, list[Ask]]:
    """Build the questions to the judge.

    Args:
        pairs: outputs to compare.
        template: the judge prompt.
        seed: of the order of the two outputs.
        both_orders: ask in both orders.
        fingerprint: everything about the judge that its answers depend on; part of each key.

    Returns:
        One question per row, two with `both_orders`; rows with equal outputs (a draw) have none.
    """
    questions: dict[int, list[Ask]] = {}
    for row, pair in enumerate(pairs):
        if pair.output_1 == pair.output_2:
            continue
        drawn = is_switched(pair.instruction, seed)
        for switched in (drawn, not drawn) if both_orders else (drawn,):
            first, second = (pair.output_2, pair.output_1) if switched else (pair.output_1, pair.output_2)
            messages = fill(template, pair.instruction, first, second)
            parts = [fingerprint, pair.instruction, pair.output_1, pair.output_2, switched]
            key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            questions.setdefault(row, []).append(Ask(row, switched, messages, key))
    return questions


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Estimated tokens of a prompt: one per 4 ASCII characters or 1 other character, 4 per message, and 3."""
    text = "".join(message.content for message in messages)
    ascii_length = len(re.sub(r"[^\x00-\x7f]", "", text))
    return math.ceil(ascii_length / 4 + (len(text) - ascii_length)) + 4 * len(messages) + 3

"""How a language model judges a pair: AlpacaEval 2's protocol as pure functions, whatever engine answers.

The judge sees both outputs in one prompt, the first called "m" and the second "M", and says one of the two names. Its
answer is not drawn but read from the log-probs of the first token: P(m) = e^m / (e^m + e^M), where a token that is not
among the top ones has probability 0. Which output comes first is a coin that depends on the instruction alone.
Source: alpaca_eval 0.6.6, annotator weighted_alpaca_eval_gpt4_turbo.
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
    """What is judged: output_1 is the reference's, output_2 the model's."""

    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Template:
    """A prompt as chat messages with the three places to fill; `text` is where it came from."""

    messages: tuple[Message, ...]
    text: str


@dataclass(frozen=True)
class Ask:
    """One question to the judge. `row`: which pair; `switched`: the model's output is shown first; `key`: its hash."""

    row: int
    switched: bool
    messages: tuple[Message, ...]
    key: str


TopLogProbs = Sequence[tuple[str, float]]  # (token, natural log-prob) of the first answer token, best first


def load_template(path: str | None) -> Template:
    """The template in a file of AlpacaEval's format, or alphapo's own for None.

    Raises:
        UsageError: the file cannot be read, or one of {instruction}, {output_1}, {output_2} is missing.
    """
    text = DEFAULT_PROMPT if path is None else read_text(Path(path).expanduser())
    missing = [f"{{{place}}}" for place in PLACES if f"{{{place}}}" not in text]
    if missing:
        raise UsageError(f"judge.prompt_file={path}: the template lacks {' and '.join(missing)}")
    return Template(split_chat(text, path), text)


def split_chat(text: str, path: str | None = None) -> tuple[Message, ...]:
    """The messages between ChatML markers, each stripped; text without markers is one user message.

    Raises:
        UsageError: a marker without its counterpart.
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
    """The messages for one pair: each place's first occurrence is replaced, in the order of `PLACES`, without escapes.

    The template is split into messages before it is filled, so that a marker inside an output stays text and cannot
    open a message of its own.
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
    """Whether the model's output is shown first: AlpacaEval's coin (annotator seed 0 there)."""
    # The random stream of a text seed is the same in every Python; `choices` draws one random().
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def probability_first(top: TopLogProbs) -> float | None:
    """P(m) from the top log-probs of the first token, None when neither name is among them."""
    found: dict[str, float] = {}
    for token, logprob in top:
        if token in (FIRST, SECOND):
            found.setdefault(token, logprob)
    if not found:
        return None
    gap = found.get(SECOND, -math.inf) - found.get(FIRST, -math.inf)
    if math.isnan(gap):  # both minus infinity
        return None
    # The logistic function of -gap, which no size of gap can make overflow.
    return 0.5 * (1.0 - math.tanh(0.5 * gap))


def preference(top: TopLogProbs, switched: bool) -> float | None:
    """1 (reference better) to 2 (model better), None when the judge named neither."""
    p = probability_first(top)
    if p is None:
        return None
    shown = 2.0 - p
    return 3.0 - shown if switched else shown


def asks(
    pairs: Sequence[Pair], template: Template, *, seed: int, both_orders: bool, fingerprint: str
) -> dict[int, list[Ask]]:
    """The questions for each row that needs any: none where the two outputs are the same (a draw), two in both orders.

    `fingerprint` names everything about the judge that an answer depends on; it is part of each key.
    """
    made: dict[int, list[Ask]] = {}
    for row, pair in enumerate(pairs):
        if pair.output_1 == pair.output_2:
            continue
        drawn = is_switched(pair.instruction, seed)
        for switched in (drawn, not drawn) if both_orders else (drawn,):
            first, second = (pair.output_2, pair.output_1) if switched else (pair.output_1, pair.output_2)
            messages = fill(template, pair.instruction, first, second)
            facts = [fingerprint, pair.instruction, pair.output_1, pair.output_2, switched]
            key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
            made.setdefault(row, []).append(Ask(row, switched, messages, key))
    return made


def estimate_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a prompt has: four characters of English a token, one of other scripts, a few a message."""
    text = "".join(message.content for message in messages)
    words = len(re.sub(r"[^\x00-\x7f]", "", text))
    return math.ceil(words / 4 + (len(text) - words)) + 4 * len(messages) + 3

r"""From a source row to a pair, for the forms in which preference data are published.

    form       prompt            chosen, rejected
    pairs      text              answers as text
    messages   messages or text  answers as message lists, alone or after the whole conversation
    messages   none, or a copy   whole conversations that differ in the last message (UltraFeedback-binarized)
    dialogue   none              whole texts "\n\nHuman: ...\n\nAssistant: ..." (HH-RLHF)
    answers    text or messages  none: a list of scored answers instead, see `scored_answers`
    unpaired   text or messages  none: one answer and its label instead, see `scored_answers`

In every form an answer is what follows the prompt that both sides share, up to the end of one assistant turn; with
`data.trajectories` a message list may hold several turns.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from alphapo_cli.config.overrides import quoted
from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import scored_answers
from alphapo_cli.data.sources import CsvText, Row
from alphapo_cli.data.text_pairs import ROLES, Conversation, Message, Side, TextPair, Verbatim
from alphapo_cli.errors import UsageError
from alphapo_cli.storage.strict_json import half_character

_HEADER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}


def detect_form(row: Row, cfg: DataConfig) -> str:
    """The form of the data: `data.format`, or inferred from the columns and types of the first row.

    Returns:
        pairs, messages, dialogue, answers or unpaired.

    Raises:
        UsageError: an answer column is missing, or text answers come without a prompt.
    """
    if cfg.format != "auto":
        return cfg.format
    if row.values.get(cfg.chosen_column) is None and row.values.get(cfg.rejected_column) is None:
        if scored_answers.list_column(row) is not None:
            return "answers"
        if all(row.values.get(name) is not None for name in scored_answers.UNPAIRED):
            return "unpaired"
    chosen, rejected = _column(row, cfg, "chosen"), _column(row, cfg, "rejected")
    if isinstance(chosen, list) or isinstance(rejected, list):
        return "messages"
    if isinstance(chosen, str) and isinstance(rejected, str) and _is_dialogue(chosen) and _is_dialogue(rejected):
        return "dialogue"
    for name, text in ((cfg.chosen_column, chosen), (cfg.rejected_column, rejected)):
        if isinstance(text, str) and _MESSAGES_AS_TEXT.match(text):
            raise UsageError(
                f"{row.where}: '{name}' is a message list written out as text, as CSV files hold them; save the data as "
                "JSONL or Parquet, or set data.format=pairs to train on this very text"
            )
    _column(row, cfg, "prompt", "; answers without a prompt are read only as dialogues or as message lists")
    return "messages" if isinstance(row.values[cfg.prompt_column], list) else "pairs"


def _is_dialogue(text: str) -> bool:
    start = _HEADER.match(text)
    return start is not None and "\n\nAssistant:" in text


def to_pair(row: Row, form: str, cfg: DataConfig) -> TextPair | None:
    """Convert a row of form `form` (see `detect_form`).

    Returns:
        The pair, None when its sides do not answer one common prompt.

    Raises:
        UsageError: a column is missing or of another type than the form requires; the message names the row.
    """
    if form in ("answers", "unpaired"):
        return _from_answers(row, form, cfg)
    chosen, rejected = _column(row, cfg, "chosen"), _column(row, cfg, "rejected")
    columns = _numbers(row.values, (cfg.prompt_column, cfg.chosen_column, cfg.rejected_column))
    gold = [] if cfg.gold_column is None else [(cfg.gold_column, _column(row, cfg, "gold"))]
    if form == "pairs":
        return TextPair(
            prompt=_text(_column(row, cfg, "prompt"), row, cfg.prompt_column),
            chosen=_text(chosen, row, cfg.chosen_column),
            rejected=_text(rejected, row, cfg.rejected_column),
            columns=columns,
            row=row.number,
            others=tuple(_text(value, row, name) for name, value in gold),
        )
    if form == "dialogue":
        return _from_dialogue(
            _text(chosen, row, cfg.chosen_column, form), _text(rejected, row, cfg.rejected_column, form), columns, row
        )
    named = [(cfg.chosen_column, chosen), (cfg.rejected_column, rejected), *gold]
    sides = _conversations(named, isinstance(row.values.get(cfg.prompt_column), list), row, cfg)
    if sides is None:
        return None
    start, (first, second, *others) = sides
    return TextPair(start, first, second, columns, row.number, others=tuple(others))


def _from_answers(row: Row, form: str, cfg: DataConfig) -> TextPair | None:
    """A list of scored answers, or one answer with its label."""
    prompt = _column(row, cfg, "prompt")
    used = (cfg.prompt_column, *scored_answers.LISTS, scored_answers.SCORES, *scored_answers.UNPAIRED)
    columns = _numbers(row.values, used)
    if form == "answers":
        name = scored_answers.list_column(row)
        answers = scored_answers.scored(row)
        named = [(f"{name}[{i}]", answer) for i, (answer, _) in enumerate(answers)]
    else:
        name, desirable = "completion", scored_answers.label_of(row)
        if row.values.get(name) is None:
            raise UsageError(f"{row.where}: no '{name}' beside 'label' (columns: {', '.join(map(str, row.values))})")
        named = [(name, row.values[name])]
    sides: list[Side]
    start: Side
    if isinstance(prompt, str) and all(isinstance(value, str) for _, value in named):
        start, sides = _text(prompt, row, cfg.prompt_column), [_text(value, row, where) for where, value in named]
    else:
        conversations = _conversations(named, True, row, cfg)
        if conversations is None:
            return None
        start, sides = conversations[0], list(conversations[1])
    if form == "unpaired":
        return TextPair(start, *scored_answers.unpaired_sides(sides[0], desirable), columns, row.number)
    scores = [score for _, score in answers]
    (first, second, *others), own = scored_answers.ranked(list(zip(sides, scores, strict=True)), cfg.answers)
    return TextPair(start, first, second, {**columns, **own}, row.number, others=tuple(others))


def _from_dialogue(chosen: str, rejected: str, columns: Mapping[str, float], row: Row) -> TextPair | None:
    starts: list[int] = []
    for text in (chosen, rejected):
        headers = list(_HEADER.finditer(text))
        if not headers or headers[0].start() > 0:
            raise UsageError(f"{row.where}: a dialogue begins with '\\n\\nHuman:'; set data.format for another form")
        if headers[-1].group(1) != "Assistant" or len(headers) < 2:
            return None
        starts.append(headers[-1].end())
    prompt = chosen[: starts[0]]
    if prompt != rejected[: starts[1]]:
        return None
    verbatim = Verbatim(prompt, chosen[starts[0] :], rejected[starts[1] :])
    return TextPair(
        prompt=_dialogue_messages(prompt),
        chosen=_answer(verbatim.chosen),
        rejected=_answer(verbatim.rejected),
        columns=columns,
        row=row.number,
        verbatim=verbatim,
    )


def _dialogue_messages(prompt: str) -> Conversation:
    # The last header opens the answer. Consecutive turns of one speaker are joined: many templates require alternation.
    headers = list(_HEADER.finditer(prompt))
    messages: list[Message] = []
    for header, following in itertools.pairwise(headers):
        role, content = _DIALOGUE_ROLES[header.group(1)], prompt[header.end() : following.start()].strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    return tuple(messages)


def _answer(text: str) -> Conversation:
    return ({"role": "assistant", "content": text.strip()},)


def _conversations(
    answers: Sequence[tuple[str, Any]], text_allowed: bool, row: Row, cfg: DataConfig
) -> tuple[Conversation, list[Conversation]] | None:
    """The prompt and each of the (name, value) answers as messages; None when they do not answer one prompt."""
    prompt: Conversation | None = None
    prompt_value = row.values.get(cfg.prompt_column)
    if isinstance(prompt_value, list):
        prompt = message_list(prompt_value, row, cfg.prompt_column)
    elif prompt_value is not None:
        prompt = ({"role": "user", "content": _text(prompt_value, row, cfg.prompt_column)},)
    sides: list[Conversation] = []
    for name, value in answers:
        if isinstance(value, str) and text_allowed:
            messages: Conversation = ({"role": "assistant", "content": _encodable(value, row, name)},)
        else:
            messages = message_list(value, row, name)
        if not messages:
            return None
        if messages[0]["role"] == "assistant":
            if prompt is None:
                raise UsageError(
                    f"{row.where}: '{name}' begins with an assistant message and there is no '{cfg.prompt_column}' "
                    "column; set data.prompt_column"
                )
            messages = prompt + messages
        elif isinstance(prompt_value, list) and messages[: len(prompt or ())] != prompt:
            return None
        if messages[-1]["role"] != "assistant":
            raise UsageError(
                f"{row.where}: '{name}' ends with role '{messages[-1]['role']}'; the answer is 'assistant'"
            )
        sides.append(messages)
    last = min(map(len, sides)) - 1
    shared = next((n for n in range(last) if any(side[n] != sides[0][n] for side in sides)), last)
    if cfg.trajectories:
        start = len(prompt or ())  # a prompt column says where trajectories begin, even if they share further turns
        if 0 < start < shared and sides[0][:start] == prompt and sides[0][start]["role"] == "assistant":
            shared = start
        while shared and any(side[shared]["role"] != "assistant" for side in sides):
            shared -= 1
    elif any(len(side) != shared + 1 for side in sides):
        return None
    return (sides[0][:shared], [side[shared:] for side in sides]) if shared else None


def message_list(value: Any, row: Row, name: str) -> Conversation:
    """The messages in column `name`; UsageError, naming the row, for a value that is no message list."""
    if not isinstance(value, list):
        raise UsageError(f"{row.where}: '{name}' is {_type(value)}, not a message list; set data.format")
    return tuple(_message(message, row, f"{name}[{index}]") for index, message in enumerate(value))


def _message(value: Any, row: Row, name: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        keys = f" (keys: {', '.join(map(str, value))})" if isinstance(value, Mapping) else ""
        raise UsageError(f"{row.where}: '{name}' is not a message with 'role' and 'content'{keys}")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise UsageError(f"{row.where}: '{name}' has role {reprlib.repr(role)}; supported are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UsageError(f"{row.where}: the content of '{name}' is {_type(content)}, not text")
    return {"role": role, "content": _encodable(content, row, name)}


def _text(value: Any, row: Row, name: str, form: str = "pairs") -> str:
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{name}' is {_type(value)}, not text as in the form '{form}'; set data.format")
    return _encodable(str(value), row, name)


def _encodable(text: str, row: Row, name: str) -> str:
    at = half_character(text)
    if at is not None:
        raise UsageError(
            f"{row.where}: '{name}' holds half a character (\\u{ord(text[at]):04x}) at {at}; it cannot be written "
            "as UTF-8; correct the row or leave it out"
        )
    return text


def _column(row: Row, cfg: DataConfig, part: str, hint: str = "") -> Any:
    name: str = getattr(cfg, f"{part}_column")
    if row.values.get(name) is None:
        state = "is null" if name in row.values else "is missing"
        present = [str(key) for key in row.values]
        close = difflib.get_close_matches(name, [key for key in present if key != name], n=1, cutoff=0.6)
        fix = f"; did you mean {_override(f'data.{part}_column', close[0])}?" if close else hint
        raise UsageError(f"{row.where}: column '{name}' {state} (columns: {', '.join(present) or 'none'}){fix}")
    return row.values[name]


def _override(key: str, name: str) -> str:
    """The shell-quoted override `key=name` for a column name, which may hold spaces and commas."""
    return f"{key}={name}" if re.fullmatch(r"[\w.-]+", name) else shlex.quote(f"{key}={quoted(name, chr(34))}")


def _numbers(values: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if name in used:
            continue
        if isinstance(value, bool | int | float | CsvText):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                numbers[name] = number
    return numbers


def _type(value: Any) -> str:
    names = {
        list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number", type(None): "null"
    }  # fmt: skip
    return "text" if isinstance(value, str) else names.get(type(value), f"a {type(value).__name__}")


def answer_text(answer: Side) -> str:
    """The text of an answer in either form; several turns are joined by blank lines."""
    return answer if isinstance(answer, str) else "\n\n".join(message["content"] for message in answer)

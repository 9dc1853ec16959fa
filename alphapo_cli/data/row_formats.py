"""From a source row to a pair, for the forms in which preference data is published.

    form       prompt            chosen, rejected
    pairs      text              answers as text
    messages   messages or text  answers as message lists, alone or after the whole conversation
    messages   none, or a copy   whole conversations that differ in the last message (UltraFeedback-binarized)
    dialogue   none              whole texts "\\n\\nHuman: ...\\n\\nAssistant: ..." (HH-RLHF)
    answers    text or messages  none: a list of scored answers instead, see `answers`
    unpaired   text or messages  none: one answer and its label instead, see `answers`

Whatever the form, an answer is what follows the prompt that both sides share, up to the end of one assistant turn; with
`data.trajectories` message lists may go on for several.
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
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}


def detect_form(row: Row, cfg: DataConfig) -> str:
    """pairs, messages, dialogue, answers or unpaired: as `data.format` says, or from the columns and types of the first row.

    Raises UsageError when an answer column is missing or when text answers come without a prompt.
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
        if isinstance(text, str) and _WRITTEN.match(text):
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
    """The pair in a row, or None when its two sides do not answer one common prompt.

    Raises UsageError, naming the row, when a column is missing or of another type than the form asks for.
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
    given = [(cfg.chosen_column, chosen), (cfg.rejected_column, rejected), *gold]
    sides = _conversations(given, isinstance(row.values.get(cfg.prompt_column), list), row, cfg)
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
        found = scored_answers.scored(row)
        given = [(f"{name}[{i}]", answer) for i, (answer, _) in enumerate(found)]
    else:
        name, desirable = "completion", scored_answers.label_of(row)
        if row.values.get(name) is None:
            raise UsageError(f"{row.where}: no '{name}' beside 'label' (columns: {', '.join(map(str, row.values))})")
        given = [(name, row.values[name])]
    sides: list[Side]
    start: Side
    if isinstance(prompt, str) and all(isinstance(value, str) for _, value in given):
        start, sides = _text(prompt, row, cfg.prompt_column), [_text(value, row, where) for where, value in given]
    else:
        whole = _conversations(given, True, row, cfg)
        if whole is None:
            return None
        start, sides = whole[0], list(whole[1])
    if form == "unpaired":
        return TextPair(start, *scored_answers.unpaired_sides(sides[0], desirable), columns, row.number)
    scores = [score for _, score in found]
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
    # The last header opens the answer. Two turns of one speaker in a row become one message: many templates demand
    # that roles alternate, and the exact text is kept beside.
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
    given_answers: Sequence[tuple[str, Any]], text_too: bool, row: Row, cfg: DataConfig
) -> tuple[Conversation, list[Conversation]] | None:
    """The prompt and each answer, or None when they do not answer one prompt.

    `given_answers`: what each is called, and its value. `text_too`: an answer may be text.
    """
    prompt: Conversation | None = None
    given = row.values.get(cfg.prompt_column)
    if isinstance(given, list):
        prompt = message_list(given, row, cfg.prompt_column)
    elif given is not None:
        prompt = ({"role": "user", "content": _text(given, row, cfg.prompt_column)},)
    sides: list[Conversation] = []
    for name, value in given_answers:
        if isinstance(value, str) and text_too:
            messages: Conversation = ({"role": "assistant", "content": _whole(value, row, name)},)
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
        elif isinstance(given, list) and messages[: len(prompt or ())] != prompt:
            return None
        if messages[-1]["role"] != "assistant":
            raise UsageError(
                f"{row.where}: '{name}' ends with role '{messages[-1]['role']}'; the answer is 'assistant'"
            )
        sides.append(messages)
    last = min(map(len, sides)) - 1
    shared = next((n for n in range(last) if any(side[n] != sides[0][n] for side in sides)), last)
    if cfg.trajectories:
        start = len(prompt or ())  # a prompt column says where trajectories begin, whatever turns they share behind it
        if 0 < start < shared and sides[0][:start] == prompt and sides[0][start]["role"] == "assistant":
            shared = start
        while shared and any(side[shared]["role"] != "assistant" for side in sides):
            shared -= 1
    elif any(len(side) != shared + 1 for side in sides):
        return None
    return (sides[0][:shared], [side[shared:] for side in sides]) if shared else None


def message_list(value: Any, row: Row, name: str) -> Conversation:
    """The messages in column `name`. Raises UsageError, naming the row, when it holds something else."""
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
    return {"role": role, "content": _whole(content, row, name)}


def _text(value: Any, row: Row, name: str, form: str = "pairs") -> str:
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{name}' is {_type(value)}, not text as in the form '{form}'; set data.format")
    return _whole(str(value), row, name)


def _whole(text: str, row: Row, name: str) -> str:
    place = half_character(text)
    if place is not None:
        raise UsageError(
            f"{row.where}: '{name}' holds half a character (\\u{ord(text[place]):04x}) at {place}; it cannot be written "
            "as UTF-8; correct the row or leave it out"
        )
    return text


def _column(row: Row, cfg: DataConfig, part: str, hint: str = "") -> Any:
    name: str = getattr(cfg, f"{part}_column")
    if row.values.get(name) is None:
        state = "is null" if name in row.values else "is missing"
        present = [str(key) for key in row.values]
        close = difflib.get_close_matches(name, [key for key in present if key != name], n=1, cutoff=0.6)
        fix = f"; did you mean {_typed(f'data.{part}_column', close[0])}?" if close else hint
        raise UsageError(f"{row.where}: column '{name}' {state} (columns: {', '.join(present) or 'none'}){fix}")
    return row.values[name]


def _typed(key: str, name: str) -> str:
    """What to type in a shell for `key` to be a column's name, which may hold spaces and commas."""
    return f"{key}={name}" if re.fullmatch(r"[\w.-]+", name) else shlex.quote(f"{key}={quoted(name, chr(34))}")


def _numbers(values: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if name in used:
            continue
        if isinstance(value, bool | int | float | CsvText):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                found[name] = number
    return found


def _type(value: Any) -> str:
    names = {
        list: "a list",
        dict: "an object",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return "text" if isinstance(value, str) else names.get(type(value), f"a {type(value).__name__}")


def answer_text(answer: Side) -> str:
    """The answer as text, whichever way it is written; of several turns, all."""
    return answer if isinstance(answer, str) else "\n\n".join(message["content"] for message in answer)

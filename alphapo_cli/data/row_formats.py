r"""From a source row to a pair, for the forms in which preference data are published.

    form       prompt            chosen, rejected
    pairs      text              answers as text
    messages   messages or text  answers as message lists, alone or after the whole conversation
    messages   none, or a copy   whole conversations that differ in the last message (UltraFeedback-binarized)
    dialogue   none              whole texts "\n\nHuman: ...\n\nAssistant: ..." (HH-RLHF)
    answers    text or messages  none: a list of scored answers instead, see `scored_answers`
    unpaired   text or messages  none: one answer and its label instead, see `scored_answers`

`messages` says what a message may hold, `row_context` what is read from further columns.

In every form an answer is what follows the prompt that both sides share, up to the end of one assistant turn; with
`data.trajectories` a message list may hold several turns.
"""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alphapo_cli.config.overrides import quoted
from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import row_context, scored_answers
from alphapo_cli.data.messages import OTHER_FORM, encodable, message_list, type_name
from alphapo_cli.data.sources import Row
from alphapo_cli.data.subsets import subset_of
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.text_pairs import (
    Conversation,
    Message,
    Side,
    TextPair,
    Verbatim,
    essential,
)
from alphapo_cli.errors import UsageError

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


def to_pair(row: Row, form: str, cfg: DataConfig, unread: Tally | None = None) -> TextPair | None:
    """Convert a row of form `form` (see `detect_form`).

    Args:
        row: the row.
        form: its form.
        cfg: the data settings.
        unread: counts the columns and keys of the row that nobody reads.

    Returns:
        The pair, None when its sides do not answer one common prompt.

    Raises:
        MediaFound: the row holds an image, a video or audio.
        UsageError: a column is missing or of another type than the form requires; the message names the row.
    """
    unread = Tally() if unread is None else unread
    read = _columns_of(form, cfg)
    row_context.check_media(row, read, cfg)
    context = row_context.context_of(row, cfg)
    columns = row_context.numbers(row, (*read, *cfg.ignore_columns))
    if form in ("answers", "unpaired"):
        pair = _from_answers(row, form, cfg, columns, unread)
    else:
        pair = _from_columns(row, form, cfg, columns)
    if pair is None:
        return None
    context = row_context.beside(pair.prompt, context)
    read = (*read, *row_context.context_columns(row, context, cfg))
    if not row_context.says_prompt(row, pair.prompt, cfg):
        read = tuple(name for name in read if name not in (cfg.prompt_column, row_context.INPUT))
    subset = subset_of(row, cfg)
    read = read if cfg.subset_column is None else (*read, cfg.subset_column)
    row_context.count_unread(row, read, columns, cfg, unread)
    if "tools" in context.arguments:
        tools = context.arguments["tools"]
        prompt, chosen, rejected, *others = (
            row_context.without_foreign_nulls(side, tools) for side in (pair.prompt, *pair.sides)
        )
        pair = replace(pair, prompt=prompt, chosen=chosen, rejected=rejected, others=tuple(others))
    return replace(pair, context=context, where=row.where, subset=subset)


def _columns_of(form: str, cfg: DataConfig) -> tuple[str, ...]:
    """The columns of prompt and answers in a form."""
    if form in ("answers", "unpaired"):
        return (cfg.prompt_column, *scored_answers.LISTS, scored_answers.SCORES, *scored_answers.UNPAIRED)
    gold = () if cfg.gold_column is None else (cfg.gold_column,)
    return (cfg.prompt_column, cfg.chosen_column, cfg.rejected_column, *gold)


def _from_columns(row: Row, form: str, cfg: DataConfig, columns: Mapping[str, float]) -> TextPair | None:
    """A pair of chosen and rejected."""
    chosen, rejected = _column(row, cfg, "chosen"), _column(row, cfg, "rejected")
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


def _from_answers(row: Row, form: str, cfg: DataConfig, columns: Mapping[str, float], unread: Tally) -> TextPair | None:
    """A list of scored answers, or one answer with its label."""
    prompt = _column(row, cfg, "prompt")
    if form == "answers":
        name = scored_answers.list_column(row)
        answers = scored_answers.scored(row)
        named = [(f"{name}[{i}]", answer) for i, (answer, _) in enumerate(answers)]
        for key in scored_answers.unread_keys(row):
            unread.add(f"{name}[].{key}", row.where)
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
            raise UsageError(f"{row.where}: a dialogue begins with '\\n\\nHuman:'; {OTHER_FORM}")
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
    prompt_value = row_context.prompt_value(row, cfg.prompt_column, cfg)
    if isinstance(prompt_value, list):
        prompt = message_list(prompt_value, row, cfg.prompt_column)
    elif prompt_value is not None:
        prompt = ({"role": "user", "content": _text(prompt_value, row, cfg.prompt_column)},)
    sides: list[Conversation] = []
    for name, value in answers:
        if isinstance(value, str) and text_allowed:
            messages: Conversation = ({"role": "assistant", "content": encodable(value, row, name)},)
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
        elif isinstance(prompt_value, list) and essential(messages[: len(prompt or ())]) != essential(prompt or ()):
            return None
        if messages[-1]["role"] != "assistant":
            raise UsageError(
                f"{row.where}: '{name}' ends with role '{messages[-1]['role']}'; the answer is 'assistant'"
            )
        sides.append(messages)
    last, bare = min(map(len, sides)) - 1, [essential(side) for side in sides]
    shared = next((n for n in range(last) if any(side[n] != bare[0][n] for side in bare)), last)
    if cfg.trajectories:
        start = len(prompt or ())  # a prompt column says where trajectories begin, even if they share further turns
        if 0 < start < shared and bare[0][:start] == essential(prompt or ()) and sides[0][start]["role"] == "assistant":
            shared = start
        while shared and any(side[shared]["role"] != "assistant" for side in sides):
            shared -= 1
    elif any(len(side) != shared + 1 for side in sides):
        return None
    return (sides[0][:shared], [side[shared:] for side in sides]) if shared else None


def _text(value: Any, row: Row, name: str, form: str = "pairs") -> str:
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{name}' is {type_name(value)}, not text as in the form '{form}'; {OTHER_FORM}")
    return encodable(str(value), row, name)


def _column(row: Row, cfg: DataConfig, part: str, hint: str = "") -> Any:
    name: str = getattr(cfg, f"{part}_column")
    if row.values.get(name) is None:
        state = "is null" if name in row.values else "is missing"
        present = [str(key) for key in row.values]
        close = difflib.get_close_matches(name, [key for key in present if key != name], n=1, cutoff=0.6)
        if not close and part == "prompt" and row_context.INSTRUCTION in present:
            close = [row_context.INSTRUCTION]
        fix = f"; did you mean {_override(f'data.{part}_column', close[0])}?" if close else hint
        raise UsageError(f"{row.where}: column '{name}' {state} (columns: {', '.join(present) or 'none'}){fix}")
    return row_context.prompt_value(row, name, cfg) if part == "prompt" else row.values[name]


def _override(key: str, name: str) -> str:
    """The shell-quoted override `key=name` for a column name, which may hold spaces and commas."""
    return f"{key}={name}" if re.fullmatch(r"[\w.-]+", name) else shlex.quote(f"{key}={quoted(name, chr(34))}")

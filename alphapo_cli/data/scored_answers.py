"""Rows that are not a pair: a list of scored answers to one prompt, or one answer with a label.

    form      columns
    answers   prompt; responses or completions: a list of answers; scores: numbers, unless the answers hold them
    unpaired  prompt, completion, label (true or 1: desirable; false or 0: undesirable)

An answer in a list is text, a message list, or an object with content, response or text, and a score, rating or
overall_score; an object with tool calls or reasoning is read as a message. A list becomes a pair with further answers: the best-scored one is chosen, the worst rejected, the next
best ones follow, so pairwise code compares best with worst. Equal scores keep the list's order.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.messages import OTHER_FORM
from alphapo_cli.data.sources import CsvText, Row
from alphapo_cli.data.text_pairs import ABSENT, ANSWER_KEYS, Side, TextPair
from alphapo_cli.errors import UsageError

T = TypeVar("T")
LISTS = ("responses", "completions")
SCORES = "scores"
TEXTS = ("content", "response", "text")
RATINGS = ("score", "rating", "overall_score")
UNPAIRED = ("completion", "label")
_MESSAGE_KEYS = (*ANSWER_KEYS, "function_call")
_LABELS = {"true": True, "1": True, "false": False, "0": False}


def list_column(row: Row) -> str | None:
    """Name of the column with a list of answers; None without one."""
    return next((name for name in LISTS if isinstance(row.values.get(name), list)), None)


def scored(row: Row) -> list[tuple[Any, float]]:
    """The answers of a row's list with their scores.

    Returns:
        (answer, score) of each in list order; the answer is text or a message list, not yet validated.

    Raises:
        UsageError: the row has no list, fewer than two answers, an answer without text, or scores that are not one
            finite number per answer.
    """
    name = list_column(row)
    if name is None:
        columns = ", ".join(map(str, row.values)) or "none"
        raise UsageError(f"{row.where}: no list in 'responses' or 'completions' (columns: {columns}); {OTHER_FORM}")
    values: list[Any] = row.values[name]
    if len(values) < 2:
        raise UsageError(f"{row.where}: '{name}' holds {len(values)} answer(s); a comparison needs two or more")
    answers, own_scores = [], []
    for i, value in enumerate(values):
        answer, score = _answer_and_score(value, row, f"{name}[{i}]") if isinstance(value, Mapping) else (value, None)
        answers.append(answer)
        own_scores.append(score)
    column_scores = row.values.get(SCORES)
    if column_scores is not None and not isinstance(column_scores, list):
        raise UsageError(
            f"{row.where}: '{SCORES}' is {reprlib.repr(column_scores)}, not a list of {len(values)} numbers"
        )
    if column_scores is not None and len(column_scores) != len(values):
        raise UsageError(
            f"{row.where}: '{name}' holds {len(values)} answers and '{SCORES}' {len(column_scores)} numbers"
        )
    scores = own_scores if column_scores is None else column_scores
    return [
        (answer, _score(score, row, f"{name}[{i}]"))
        for i, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]


def _answer_and_score(value: Mapping[str, Any], row: Row, name: str) -> tuple[Any, Any]:
    text = next((value[key] for key in TEXTS if value.get(key) is not None), None)
    more = {key: value[key] for key in _MESSAGE_KEYS if value.get(key)}
    if text is None and not more:
        raise UsageError(f"{row.where}: '{name}' has none of {', '.join(TEXTS)} (keys: {', '.join(map(str, value))})")
    answer = [{"role": "assistant", "content": text, **more}] if more else text
    return answer, next((value[key] for key in RATINGS if value.get(key) is not None), None)


def unread_keys(row: Row) -> list[str]:
    """The keys of a list's answers that are not null and not read."""
    answers = [answer for answer in row.values[str(list_column(row))] if isinstance(answer, Mapping)]
    known = {*RATINGS, *_MESSAGE_KEYS, "role"}
    found: dict[str, None] = {}
    for answer in answers:
        text = next((key for key in TEXTS if answer.get(key) is not None), None)
        found |= {
            str(key): None for key, value in answer.items() if key not in known | {text} and value not in (None, "")
        }
    return list(found)


def _score(value: Any, row: Row, name: str) -> float:
    if value is None:
        raise UsageError(
            f"{row.where}: '{name}' has no score; give one in each answer ({', '.join(RATINGS)}) or a list '{SCORES}'"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{row.where}: the score of '{name}' is {reprlib.repr(value)}, not a finite number")
    return float(value)


def answers_per_row(rows: Sequence[Row], cfg: DataConfig, source: str) -> int:
    """Number of answers to use of each list.

    Args:
        rows: rows with a list of answers each.
        cfg: `answers` is the number, None for the length of the shortest list.
        source: its name in messages.

    Returns:
        Answers per row.

    Raises:
        UsageError: a row has no list, or a list is shorter than `data.answers`.
    """
    counts = [len(scored(row)) for row in rows]
    wanted = cfg.answers
    if wanted is None:
        return min(counts)
    short = [row for row, count in zip(rows, counts, strict=True) if count < wanted]
    if short:
        first = len(scored(short[0]))
        raise UsageError(
            f"{source}: {len(short):,} of {len(rows):,} rows have fewer than data.answers={wanted} answers (the first: "
            f"{short[0].where}, with {first}); give data.answers={min(counts)}, or leave those rows out"
        )
    return wanted


def ranked(answers: Sequence[tuple[T, float]], count: int | None) -> tuple[list[T], dict[str, float]]:
    """Best, worst, then the next best: `count` answers (all, if None), and their scores as columns."""
    order = sorted(range(len(answers)), key=lambda i: -answers[i][1])
    best, *middle, worst = order
    sides = [best, worst, *middle][:count]
    names = ("score_chosen", "score_rejected", *(f"score_{side}" for side in range(2, len(sides))))
    return [answers[i][0] for i in sides], {name: answers[i][1] for name, i in zip(names, sides, strict=True)}


def tied(pair: TextPair) -> bool:
    """Whether all scores of a list are equal."""
    return pair.columns["score_chosen"] == pair.columns["score_rejected"]


def label_of(row: Row) -> bool:
    """Whether an unpaired row's answer is desirable.

    Returns:
        True for a label of true or 1, False for false or 0.

    Raises:
        UsageError: the label is neither true, false, 1 nor 0.
    """
    value = row.values.get("label")
    if isinstance(value, bool):
        return value
    written = str(value).strip().lower() if isinstance(value, CsvText) else str(value)
    if isinstance(value, CsvText | int | float) and written.removesuffix(".0") in _LABELS:
        return _LABELS[written.removesuffix(".0")]
    raise UsageError(
        f"{row.where}: label={reprlib.repr(value)} must be true or 1 (desirable), false or 0 (undesirable)"
    )


def unpaired_sides(answer: Side, desirable: bool) -> tuple[Side, Side]:
    """(chosen, rejected) of a single answer, one of them ABSENT."""
    return (answer, ABSENT) if desirable else (ABSENT, answer)

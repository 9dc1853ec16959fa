"""What stands beside the answers of a row: scores and their name, vectors, and which answers are a given pair."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from alphapo_cli.data.sources import CsvText, Row
from alphapo_cli.errors import UsageError
from alphapo_cli.pairs.candidates import GIVEN, NO_SCORE, SCORED_BY, SIDES, Candidates, is_score

SCORE = "score"  # the column of scores without a name


def given_of_list(row: Row, answers: int) -> tuple[int, int] | None:
    """Where the answers of a given pair stand in a list, as `alphapo score` writes it; None where there is no pair."""
    named = row.values.get(GIVEN)
    if named is None:
        return None
    if not isinstance(named, list) or len(named) != answers or [named.count(side) for side in SIDES] != [1, 1]:
        raise UsageError(
            f"{row.where}: '{GIVEN}' must be a list with 'chosen' at one of {answers} answers, 'rejected' at another and "
            "null at the rest"
        )
    return named.index(SIDES[0]), named.index(SIDES[1])


def scored_by(row: Row) -> str:
    """The name of a single list of scores, as `alphapo score` writes it beside; `SCORE` where there is none."""
    name = row.values.get(SCORED_BY)
    return name if isinstance(name, str) and name else SCORE


def vector(value: Any, row: Row, number: int) -> tuple[float, ...] | None:
    """The vector of an answer, for D-optimal selection; UsageError for anything but finite numbers."""
    if value is not None and not (isinstance(value, list) and all(map(is_score, value))):
        raise UsageError(f"{row.where}: 'features[{number}]' is no list of finite numbers")
    return None if value is None else tuple(map(float, value))


def check_features(prompts: Sequence[Candidates]) -> None:
    """Refuse (UsageError) vectors of different lengths."""
    size: int | None = None
    for prompt in prompts:
        for answer in prompt.answers:
            length = size if answer.features is None else len(answer.features)
            if size is not None and length != size:
                raise UsageError(f"{prompt.where}: its features are {length} numbers, others {size}; all need as many")
            size = length


def score_of(value: Any, row: Row, name: str) -> float | None:
    """A score of an answer, None where it has none; UsageError for what is no number."""
    if value is None or (isinstance(value, CsvText) and not value.strip()):
        return None
    if isinstance(value, CsvText):  # a CSV file holds texts alone
        with contextlib.suppress(ValueError):
            value = float(value)
    if not is_score(value):
        raise UsageError(f"{row.where}: the score '{name}' is {value!r}, {NO_SCORE}")
    return float(value)

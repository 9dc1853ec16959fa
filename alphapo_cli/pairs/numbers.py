"""The numbers of pairs by which they are selected and ordered.

    margin, abs_margin               of the scores that ranked them
    score_chosen, score_rejected
    COLUMN_margin, abs_COLUMN_margin, COLUMN_chosen, COLUMN_rejected   of every column of scores
    chars_chosen, chars_rejected, chars_difference                     lengths; words_... likewise
    overlap                          shared words over all words of both answers (Jaccard)
    own_chosen, own_rejected         1 for an answer of the sampled model, else 0
    ches, reference_gap, ...         scores under the start model, as for `data.select` (`probe.score_names`)
    any number in the rows' own columns, and every measure that `measures` defines

A number that a pair does not have is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from alphapo_cli.pairs.candidates import SELF, Answer, Candidates
from alphapo_cli.pairs.rules import Pair
from alphapo_cli.probe.score_names import NAMES as OF_START

Number = Callable[[Pair], float]
# Numbers of pairs under the start model, by name: what needs a model is handed in.
OfStart = Callable[[Sequence[Pair]], Mapping[str, Sequence[float]]]
_LENGTHS = ("chars", "words")


def names(columns: Sequence[str], row_columns: Sequence[str]) -> list[str]:
    """Every name that `numbers` knows, measures aside.

    Args:
        columns: columns of scores.
        row_columns: the rows' own columns of numbers.

    Returns:
        The names.
    """
    return list(dict.fromkeys([*_functions(columns), *OF_START, *row_columns]))


def numbers(
    pairs: Sequence[Pair], columns: Sequence[str], wanted: Sequence[str], start: OfStart | None = None
) -> dict[str, list[float]]:
    """Compute the numbers that are asked for.

    Args:
        pairs: n pairs.
        columns: columns of scores.
        wanted: names of `names`.
        start: gives those that need the start model; asked only where one of them is wanted.

    Returns:
        Name -> [n] numbers.
    """
    known = _functions(columns)
    of_start = start(pairs) if start is not None and pairs and any(name in OF_START for name in wanted) else {}
    return {
        name: list(of_start[name])
        if name in of_start
        else [known[name](pair) if name in known else _value(pair.candidates.columns.get(name)) for pair in pairs]
        for name in wanted
    }


def row_columns(candidates: Sequence[Candidates]) -> list[str]:
    """Names of the rows' own columns that hold numbers."""
    found = (name for one in candidates for name, value in one.columns.items() if _is_number(value))
    return list(dict.fromkeys(found))


def _functions(columns: Sequence[str]) -> dict[str, Number]:
    found: dict[str, Number] = {
        "margin": lambda pair: _value(pair.margin),
        "abs_margin": lambda pair: abs(_value(pair.margin)),
        "score_chosen": lambda pair: _value(pair.score_chosen),
        "score_rejected": lambda pair: _value(pair.score_rejected),
        "overlap": lambda pair: overlap(pair.chosen.text, pair.rejected.text),
        "own_chosen": lambda pair: float(pair.chosen.source == SELF),
        "own_rejected": lambda pair: float(pair.rejected.source == SELF),
    }
    for column in columns:
        found |= _sides(column, lambda answer, column=column: _value(answer.scores.get(column)), "margin")  # type: ignore[misc]
        found[f"abs_{column}_margin"] = lambda pair, margin=found[f"{column}_margin"]: abs(margin(pair))  # type: ignore[misc]
    for unit in _LENGTHS:
        found |= _sides(unit, lambda answer, unit=unit: float(answer.length(unit)), "difference")  # type: ignore[misc]
    return found


def _sides(name: str, of: Callable[[Answer], float], difference: str) -> dict[str, Number]:
    return {
        f"{name}_chosen": lambda pair: of(pair.chosen),
        f"{name}_rejected": lambda pair: of(pair.rejected),
        f"{name}_{difference}": lambda pair: of(pair.chosen) - of(pair.rejected),
    }


def overlap(first: str, second: str) -> float:
    """Jaccard similarity of the sets of words of two texts; 1 for two empty ones."""
    one, other = set(first.lower().split()), set(second.lower().split())
    return len(one & other) / len(one | other) if one | other else 1.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(value: object) -> float:
    return float(value) if _is_number(value) else math.nan  # type: ignore[arg-type]

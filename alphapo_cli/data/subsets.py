"""Subsets of the pairs by a column of the data (`data.subset_column`), in which accuracies are measured apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.sources import Row
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.errors import UsageError, nearest

if TYPE_CHECKING:  # settings are read, and answered, without numpy
    from alphapo_cli.data.token_pairs import Index

MOST = 64  # subsets of a data set; each has metrics of its own
_LONGEST = 80  # characters of a name
NONE = "(none)"  # what the table calls the pairs of no subset


def subset_of(row: Row, cfg: DataConfig) -> str:
    """The subset of a row.

    Args:
        row: the row.
        cfg: the data settings, of which `subset_column` names the column.

    Returns:
        The column's text, number or truth value as text; "" where the row has none, or no column is named.

    Raises:
        UsageError: the value is a list, an object, or too long for a name.
    """
    name = cfg.subset_column
    value: Any = None if name is None else row.values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise UsageError(
            f"{row.where}: data.subset_column={name} is a {type(value).__name__}, not text or a number; name another column"
        )
    text = " ".join(str(value).split())
    if len(text) > _LONGEST or not text.isprintable():
        what = f"a text of {len(text)} characters" if len(text) > _LONGEST else "characters that cannot be printed"
        raise UsageError(
            f"{row.where}: data.subset_column={name} holds {what}, which names no subset; name another column"
        )
    return text


def check_subsets(pairs: Sequence[TextPair], name: str, columns: Collection[str], where: str) -> None:
    """Check that a column names subsets.

    Args:
        pairs: the usable pairs.
        name: the column.
        columns: those of the data's first row, for the message.
        where: the data, for the message.

    Raises:
        UsageError: no pair has the column, or it has more than `MOST` values.
    """
    found = {pair.subset for pair in pairs} - {""}
    if not found:
        known = f" (columns: {', '.join(columns)})"
        raise UsageError(f"{where}: data.subset_column={name}: no row has that column{nearest(name, columns)}{known}")
    if len(found) > MOST:
        raise UsageError(
            f"{where}: data.subset_column={name} has {len(found):,} values, each of which would be a subset; name a column "
            f"with at most {MOST}"
        )


def numbered(pairs: Sequence[TextPair]) -> tuple[Index | None, tuple[str, ...]]:
    """Position of each pair's subset among the names, -1 for none; and the names, sorted. None where no pair has one."""
    names = tuple(sorted({pair.subset for pair in pairs} - {""}))
    if not names:
        return None, ()
    import numpy as np

    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(pair.subset, -1) for pair in pairs], np.int64), names


def counted(of: Index | None, names: Sequence[str]) -> dict[str, int]:
    """Name -> number of pairs; those of no subset, if any, as `NONE`."""
    if of is None:
        return {}
    counts = Counter(of.tolist())
    found = {name: counts[number] for number, name in enumerate(names)}
    return found | ({NONE: counts[-1]} if counts[-1] else {})

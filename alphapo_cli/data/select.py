"""Selection of rows by named numbers: conditions in order, each applied to the rows that those before it have left.

Neither torch nor files are needed: whoever has numbers of rows (scores of pairs, columns of the data, margins of sampled
answers) selects by the same rules. The result does not depend on the order of the rows where each has a key of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphapo_cli.errors import UsageError, nearest

RANDOM = "random"  # a number in [0, 1) made of seed and key of each row; always known
KEEP = ("lowest", "highest", "middle")


@dataclass(frozen=True)
class Condition:
    """What a row must satisfy to be kept: limits, a share of the rows in the order of a number, or both.

    Attributes:
        by: name of the number.
        keep: which rows `share` or `count` keeps, see `KEEP`.
        share: part of the rows with a number, above 0 and at most 1.
        count: number of rows, instead of `share`; all where there are fewer.
        min: least number that is kept.
        max: largest number that is kept.
    """

    by: str
    keep: str | None = None
    share: float | None = None
    count: int | None = None
    min: float | None = None
    max: float | None = None

    @property
    def text(self) -> str:
        """The condition in words, such as `ches <= 0.5` or `the lowest 95 % by ches`."""
        limits = [f"{low:g} <=" for low in (self.min,) if low is not None] + [self.by]
        limits += [f"<= {high:g}" for high in (self.max,) if high is not None]
        if self.keep is None:
            return " ".join(limits)
        amount = f"{self.count:,}" if self.count is not None else f"{(self.share or 0) * 100:g} %"
        among = f" among {' '.join(limits)}" if len(limits) > 1 else ""
        return f"the {self.keep} {amount} by {self.by}{among}"


@dataclass(frozen=True)
class Dropped:
    """A row that was not kept: its position, the condition's position, its number (NaN: it has none)."""

    row: int
    condition: int
    value: float


@dataclass(frozen=True)
class Selection:
    """Positions of the kept rows in ascending order, and the dropped ones in the order of the conditions."""

    kept: tuple[int, ...]
    dropped: tuple[Dropped, ...]

    def counts(self, conditions: Sequence[Condition]) -> dict[str, int]:
        """Number of dropped rows by condition, in words; `... : no value` counts rows that have no number."""
        found: dict[str, int] = {}
        for position, condition in enumerate(conditions):
            of_condition = [one for one in self.dropped if one.condition == position]
            without = sum(math.isnan(one.value) for one in of_condition)
            found[condition.text] = found.get(condition.text, 0) + len(of_condition) - without
            if without:
                found[f"{condition.by}: no value"] = found.get(f"{condition.by}: no value", 0) + without
        return found


def typed(entry: Mapping[str, Any], where: str) -> Condition:
    """Make a condition of an entry whose keys are known.

    Args:
        entry: key -> value.
        where: the setting that holds it, for messages.

    Returns:
        The condition.

    Raises:
        UsageError: a value has not the type of its key.
    """
    kinds: dict[str, tuple[type, ...]] = {"by": (str,), "keep": (str,), "count": (int,)}
    for key, value in entry.items():
        kind = kinds.get(key, (int, float))
        if (value is not None or key == "by") and (isinstance(value, bool) or not isinstance(value, kind)):
            what = "a text" if kind == (str,) else "a whole number" if kind == (int,) else "a number"
            raise UsageError(f"{where}: {key}={value}: must be {what}")
    return Condition(**entry)


def check(conditions: Sequence[Condition], known: Collection[str], where: str) -> None:
    """Check conditions before anything is computed for them.

    Args:
        conditions: the conditions.
        known: names of the numbers that there are.
        where: the setting that holds them, for messages.

    Raises:
        UsageError: a name is not known, a condition states no limit, or a share, count or limit makes no sense.
    """
    for one in conditions:
        if one.by not in known and one.by != RANDOM:
            names = sorted({*known, RANDOM})
            raise UsageError(
                f"{where}.by={one.by}: no such score or column{nearest(one.by, names)} (there are: {', '.join(names)})"
            )
        _check_limits(one, where)


def _check_limits(one: Condition, where: str) -> None:
    if one.keep is not None and one.keep not in KEEP:
        raise UsageError(
            f"{where}.keep={one.keep}: no such choice{nearest(one.keep, KEEP)} (choices: {', '.join(KEEP)})"
        )
    amounts = [name for name in ("share", "count") if getattr(one, name) is not None]
    if one.keep is not None and len(amounts) != 1:
        raise UsageError(f"{where}.keep={one.keep}: how many? give {where}.share or {where}.count, one of the two")
    if one.keep is None and amounts:
        raise UsageError(f"{where}.{amounts[0]}: of which rows? give {where}.keep too ({', '.join(KEEP)})")
    if one.keep is None and one.min is None and one.max is None:
        raise UsageError(
            f"{where}.by={one.by}: keeps what? give {where}.keep with a share, or {where}.min or {where}.max"
        )
    if one.share is not None and not 0 < one.share <= 1:
        raise UsageError(f"{where}.share={one.share:g}: must be above 0 and at most 1")
    if one.count is not None and one.count < 1:
        raise UsageError(f"{where}.count={one.count}: must be at least 1")
    for name in ("min", "max"):
        limit = getattr(one, name)
        if limit is not None and not math.isfinite(limit):
            raise UsageError(f"{where}.{name}={limit}: must be a finite number")
    if one.min is not None and one.max is not None and one.min > one.max:
        raise UsageError(f"{where}.min={one.min:g} is above {where}.max={one.max:g}: no row can satisfy both")


def select(
    numbers: Mapping[str, Sequence[float]],
    conditions: Sequence[Condition],
    keys: Sequence[str],
    *,
    seed: int = 0,
) -> Selection:
    """Apply checked conditions to rows.

    A row without a number (NaN) is dropped. A share is taken of the rows that have a number within the limits of the
    same condition; half a row counts as one, and at least one row is kept. Equal numbers are ordered by key.

    Args:
        numbers: name -> [n] numbers; a name that a condition asks for and that is `RANDOM` need not be there.
        conditions: the conditions, applied in order.
        keys: [n] texts that tell the rows apart, such as hashes of their content.
        seed: of `RANDOM`.

    Returns:
        What is kept and what is dropped.
    """
    left = list(range(len(keys)))
    dropped: list[Dropped] = []
    for position, one in enumerate(conditions):
        column = numbers[one.by] if one.by in numbers else [_random(seed, position, key) for key in keys]
        values = {row: float(column[row]) for row in left}
        kept = _kept(left, values, one, keys)
        dropped += [Dropped(row, position, values[row]) for row in left if row not in kept]
        left = [row for row in left if row in kept]
    return Selection(tuple(left), tuple(dropped))


def _kept(rows: Sequence[int], values: Mapping[int, float], one: Condition, keys: Sequence[str]) -> set[int]:
    """The rows that satisfy a condition."""
    low, high = (-math.inf if one.min is None else one.min), (math.inf if one.max is None else one.max)
    within = [row for row in rows if low <= values[row] <= high]  # false for NaN
    if one.keep is None or not within:
        return set(within)
    # 0.95 of 1000 is 950 although 0.95 * 1000 in binary may be below it.
    wanted = one.count if one.count is not None else math.floor((one.share or 0) * len(within) + 0.5 + 1e-9)
    wanted = min(max(1, wanted), len(within))
    ordered = sorted(within, key=lambda row: (values[row], keys[row]))
    first = {"lowest": 0, "highest": len(within) - wanted, "middle": (len(within) - wanted) // 2}[str(one.keep)]
    return set(ordered[first : first + wanted])


def _random(seed: int, position: int, key: str) -> float:
    """A number in [0, 1) that depends on seed, condition and row alone."""
    found = hashlib.sha256(f"{seed}/{position}/{key}".encode()).digest()
    return int.from_bytes(found[:8], "big") / 2**64

"""What an objective reads of the data: is it there, and is it what it must be? Asked before any work starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.objective.objective import Objective


def lacking(objective: Objective, name: str, sides: int = 2) -> str:
    """What is missing, what reads it, and which methods do: the first part of an error's line."""
    from alphapo_cli.objective.catalog import needing  # only an error composes every YAML

    methods = needing(name)
    known = f"; methods that need it: {', '.join(methods)}" if methods else ""
    reader = objective.columns_of(sides)[name]
    return f"no column '{name}', which objective '{objective.name}' needs ({reader}{known})"


def check_sides(
    objective: Objective, available: int, unpaired: bool, where: str, columns: Collection[str] = ()
) -> None:
    """The data's rows hold the answers that the objective reads: `available` of them, or (`unpaired`) perhaps one alone.

    With `columns`, the numbers that came with the rows, a third answer that is to be gold is not a scored list's.

    Raises:
        UsageError: they do not.
    """
    from alphapo_cli.objective.catalog import reading_unpaired

    wanted = objective.sides(available)
    if wanted > available:
        raise UsageError(
            f"{where}: objective '{objective.name}' reads {wanted} answers of a row, which has {available}; the third is a "
            "gold answer: name its column with data.gold_column"
        )
    if wanted > 2 and "score_2" in columns and objective.reads_all is None and not objective.needs_mismatched:
        raise UsageError(
            f"{where}: objective '{objective.name}' reads a gold answer as a row's third, and the third of scored answers is "
            "their second best; give pairs, with data.gold_column for the gold answer"
        )
    pairing = objective.pairing
    if unpaired and pairing is not None:
        raise UsageError(
            f"{where}: rows with one answer alone, and objective '{objective.name}' reads pairs ({pairing.description}); "
            f"methods that take unpaired rows: {', '.join(reading_unpaired())}"
        )


def broken_rules(objective: Objective, columns: Mapping[str, torch.Tensor]) -> list[tuple[int, str]]:
    """(pair, what its columns must be) for every pair that breaks a part's rule."""
    found = []
    for bound in objective.parts.values():
        if bound.part.rule is None:
            continue
        bad, words = bound.part.rule({n: columns[n] for n in bound.columns}, **bound.settings)
        found += [(int(i), words) for i in torch.nonzero(bad).flatten().tolist()]
    label = objective.label_column
    if label is not None:
        outside = (columns[label] < 0) | (columns[label] > 1)
        found += [(int(i), f"{label} must be between 0 and 1") for i in torch.nonzero(outside).flatten().tolist()]
    return sorted(found)


def check_columns(
    objective: Objective, columns: Mapping[str, np.ndarray], rows: Sequence[int], where: str, sides: int = 2
) -> None:
    """Every column that the objective reads is there for every pair, and is what its part says.

    Args:
        columns: name -> [n], NaN where a pair has none.
        rows: [n] what each pair is called in messages.
        where: the data, in words.
        sides: answers of a row that the objective reads.

    Raises:
        UsageError: a column is missing (altogether or for a pair), or a value breaks a rule.
    """
    wanted = objective.columns_of(sides)
    for name in wanted:
        if name not in columns:
            raise UsageError(
                f"{where}: {lacking(objective, name, sides)}; add it to the data as numbers "
                f"(its columns with finite numbers: {', '.join(columns) or 'none'})"
            )
        absent = np.flatnonzero(~np.isfinite(columns[name]))
        if len(absent):
            needed = lacking(objective, name, sides).removeprefix("no ")
            raise UsageError(f"{where}: pair {rows[int(absent[0])]} has no finite number in {needed}")
    tensors = {name: torch.from_numpy(np.asarray(columns[name], np.float64)) for name in wanted}
    for i, words in broken_rules(objective, tensors)[:1]:
        values = ", ".join(f"{n}={tensors[n][i].item():g}" for n in tensors)
        raise UsageError(f"{where}: pair {rows[i]} ({values}): {words}, as objective '{objective.name}' needs it")

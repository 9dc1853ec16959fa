"""Checks, before any work starts, that the data has the columns and answers that an objective reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.objective.objective import Objective


def lacking(objective: Objective, name: str, sides: int = 2) -> str:
    """Say which column is missing, what reads it, and which methods do: the start of an error message."""
    from alphapo_cli.objective.catalog import needing  # only an error composes every YAML

    methods = needing(name)
    known = f"; methods that need it: {', '.join(methods)}" if methods else ""
    reader = objective.columns_of(sides)[name]
    return f"no column '{name}', which objective '{objective.name}' needs ({reader}{known})"


def check_sides(
    objective: Objective, available: int, unpaired: bool, where: str, columns: Collection[str] = ()
) -> None:
    """Check that the data's rows hold the answers that the objective reads.

    Args:
        objective: the objective.
        available: answers of each row.
        unpaired: whether a row may have a single answer.
        where: the data, for messages.
        columns: names of the numbers that came with the rows; with scores of further answers, a row's third answer is
            not a gold answer.

    Raises:
        UsageError: a row has fewer answers than the objective reads, its third answer is no gold answer, or unpaired
            rows meet an objective that reads pairs.
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
    """Return (pair, what its columns must be) for every pair whose columns break a part's rule."""
    broken = []
    for bound in objective.parts.values():
        if bound.part.rule is None:
            continue
        bad, requirement = bound.part.rule({n: columns[n] for n in bound.columns}, **bound.settings)
        broken += [(int(i), requirement) for i in torch.nonzero(bad).flatten().tolist()]
    label = objective.label_column
    if label is not None:
        outside = (columns[label] < 0) | (columns[label] > 1)
        broken += [(int(i), f"{label} must be between 0 and 1") for i in torch.nonzero(outside).flatten().tolist()]
    return sorted(broken)


def check_columns(
    objective: Objective, columns: Mapping[str, np.ndarray], rows: Sequence[int], where: str, sides: int = 2
) -> None:
    """Check that every column that the objective reads has a valid value for every pair.

    Args:
        objective: the objective.
        columns: name -> [n], NaN if a pair has no value.
        rows: [n] name of each pair in messages.
        where: the data, for messages.
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
    for i, requirement in broken_rules(objective, tensors)[:1]:
        values = ", ".join(f"{n}={tensors[n][i].item():g}" for n in tensors)
        raise UsageError(f"{where}: pair {rows[i]} ({values}): {requirement}, as objective '{objective.name}' needs it")

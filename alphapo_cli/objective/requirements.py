"""Columns that an objective reads: are they there, and are they what they must be? Asked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.objective.preference import Objective


def lacking(objective: Objective, name: str) -> str:
    """What is missing, what reads it, and which methods do: the first part of an error's line."""
    from alphapo_cli.objective.catalog import needing  # only an error composes every YAML

    methods = needing(name)
    known = f"; methods that need it: {', '.join(methods)}" if methods else ""
    return f"no column '{name}', which objective '{objective.name}' needs ({objective.columns[name]}{known})"


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


def check_columns(objective: Objective, columns: Mapping[str, np.ndarray], rows: Sequence[int], where: str) -> None:
    """Every column that the objective reads is there for every pair, and is what its part says.

    Args:
        columns: name -> [n], NaN where a pair has none.
        rows: [n] what each pair is called in messages.
        where: the data, in words.

    Raises:
        UsageError: a column is missing (altogether or for a pair), or a value breaks a rule.
    """
    for name in objective.columns:
        if name not in columns:
            raise UsageError(
                f"{where}: {lacking(objective, name)}; add it to the data (its columns: {', '.join(columns) or 'none'})"
            )
        absent = np.flatnonzero(~np.isfinite(columns[name]))
        if len(absent):
            raise UsageError(f"{where}: pair {rows[int(absent[0])]} has {lacking(objective, name)}")
    tensors = {name: torch.from_numpy(np.asarray(columns[name], np.float64)) for name in objective.columns}
    for i, words in broken_rules(objective, tensors)[:1]:
        values = ", ".join(f"{n}={tensors[n][i].item():g}" for n in tensors)
        raise UsageError(f"{where}: pair {rows[i]} ({values}): {words}, as objective '{objective.name}' needs it")

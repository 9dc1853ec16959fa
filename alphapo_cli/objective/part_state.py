"""What parts of an objective remember between optimizer steps: where it begins, what it reads, how it moves.

A step's statistics are those of all its pairs, over every process and micro-batch, and are known before its loss: so
the loss does not depend on how a step was cut up. The values are a checkpoint's business, hence plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.objective.inputs import ObjectiveInputs, PartState
from alphapo_cli.objective.part import BoundPart


def begin(parts: Mapping[str, BoundPart]) -> dict[str, PartState]:
    """The state of every part that has one, before the first step."""
    found: dict[str, PartState] = {}
    for kind, bound in parts.items():
        if bound.part.stateful is not None:
            values = bound.part.stateful.initial(**bound.settings)
            found[kind] = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    return found


@torch.no_grad()
def observe(parts: Mapping[str, BoundPart], c: ObjectiveInputs) -> dict[str, Tensor]:
    """[B, F] float64 values of each pair for every part that reads them."""
    found = {}
    for kind, bound in parts.items():
        rule = bound.part.stateful
        if rule is not None and rule.observe is not None:
            seen = c if bound.part.sides is None else c.first(bound.part.sides)
            found[kind] = rule.observe(seen, **bound.settings).detach().double().cpu()
    return found


def update(
    parts: Mapping[str, BoundPart], states: Mapping[str, PartState], observed: Mapping[str, Tensor]
) -> dict[str, PartState]:
    """The states with which a step is computed; `observed` [n, F] of all its pairs, in the data's order."""
    moved = dict(states)
    for kind, values in observed.items():
        rule = parts[kind].part.stateful
        if rule is not None and rule.update is not None:
            moved[kind] = rule.update(states[kind], values, **parts[kind].settings)
    return moved


def on_probe(
    parts: Mapping[str, BoundPart], states: Mapping[str, PartState], row: Mapping[str, Any]
) -> dict[str, PartState]:
    """The states after a measurement of the probe, `row` its metrics."""
    moved = dict(states)
    for kind, bound in parts.items():
        rule = bound.part.stateful
        if rule is not None and rule.on_probe is not None:
            moved[kind] = rule.on_probe(states[kind], row, **bound.settings)
    return moved

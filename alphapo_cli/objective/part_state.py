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
    """The memory of every part that has one, before the first step."""
    found: dict[str, PartState] = {}
    for kind, bound in parts.items():
        if bound.part.state is not None:
            values = bound.part.state.initial(**bound.settings)
            found[kind] = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    return found


@torch.no_grad()
def observe(parts: Mapping[str, BoundPart], c: ObjectiveInputs) -> dict[str, Tensor]:
    """[B, F] float64 values of each pair for every part that reads them."""
    found = {}
    for kind, bound in parts.items():
        state = bound.part.state
        if state is not None and state.observe is not None:
            seen = c if bound.part.sides is None else c.first(bound.part.sides)
            found[kind] = state.observe(seen, **bound.settings).detach().double().cpu()
    return found


def settle(
    parts: Mapping[str, BoundPart], memory: Mapping[str, PartState], observed: Mapping[str, Tensor]
) -> dict[str, PartState]:
    """The memory with which a step is computed; `observed` [n, F] of all its pairs, in the data's order."""
    moved = dict(memory)
    for kind, values in observed.items():
        state = parts[kind].part.state
        if state is not None and state.settle is not None:
            moved[kind] = state.settle(memory[kind], values, **parts[kind].settings)
    return moved


def react(
    parts: Mapping[str, BoundPart], memory: Mapping[str, PartState], row: Mapping[str, Any]
) -> dict[str, PartState]:
    """The memory after a reading of the probe."""
    moved = dict(memory)
    for kind, bound in parts.items():
        state = bound.part.state
        if state is not None and state.react is not None:
            moved[kind] = state.react(memory[kind], row, **bound.settings)
    return moved

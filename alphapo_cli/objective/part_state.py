"""The states of an objective's parts across optimizer steps: initial values, statistics that they read, updates.

A step's statistics are those of all its pairs, over every process and micro-batch, and are known before its loss: so
the loss does not depend on how a step was split. Checkpoints store the states, hence plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.objective.inputs import ObjectiveInputs, PartState
from alphapo_cli.objective.part import BoundPart


def initial_states(parts: Mapping[str, BoundPart]) -> dict[str, PartState]:
    """States of the stateful parts before the first step: kind -> state."""
    states: dict[str, PartState] = {}
    for kind, bound in parts.items():
        if bound.part.stateful is not None:
            values = bound.part.stateful.initial(**bound.keywords)
            states[kind] = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    return states


@torch.no_grad()
def observe(parts: Mapping[str, BoundPart], c: ObjectiveInputs) -> dict[str, Tensor]:
    """Values of each pair that stateful parts read: kind -> [B, F] float64 on the CPU."""
    observed = {}
    for kind, bound in parts.items():
        stateful = bound.part.stateful
        if stateful is not None and stateful.observe is not None:
            inputs = c if bound.part.sides is None else c.first(bound.part.sides)
            observed[kind] = stateful.observe(inputs, **bound.keywords).detach().double().cpu()
    return observed


def update(
    parts: Mapping[str, BoundPart], states: Mapping[str, PartState], observed: Mapping[str, Tensor]
) -> dict[str, PartState]:
    """States for the loss of a step, from `observed` [n, F] of all its pairs in the data's order."""
    updated = dict(states)
    for kind, values in observed.items():
        stateful = parts[kind].part.stateful
        if stateful is not None and stateful.update is not None:
            updated[kind] = stateful.update(states[kind], values, **parts[kind].keywords)
    return updated


def on_probe(
    parts: Mapping[str, BoundPart], states: Mapping[str, PartState], row: Mapping[str, Any]
) -> dict[str, PartState]:
    """States after a measurement of the probe, `row` its metrics."""
    updated = dict(states)
    for kind, bound in parts.items():
        stateful = bound.part.stateful
        if stateful is not None and stateful.on_probe is not None:
            updated[kind] = stateful.on_probe(states[kind], row, **bound.keywords)
    return updated

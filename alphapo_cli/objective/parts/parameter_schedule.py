"""Schedules: a parameter of another part that moves during training, from a `StepContext` and state to its value.

`of` names the parameter as KIND.NAME: shape.alpha, margin.factor, score.alpha, ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.inputs import PartState, StepContext
from alphapo_cli.objective.part import StatefulPart, register


@register("schedule")
def constant(context: StepContext, state: PartState) -> float | None:
    """Every parameter stays what it is."""
    return None


@register("schedule")
def linear(
    context: StepContext, state: PartState, *, of: str = "shape.alpha", start: float = 0.0, end: float = 0.5
) -> float | None:
    """start + (end - start) t at the share t of training that is over; the last step is taken just before t = 1."""
    return start + (end - start) * context.progress


@register("schedule")
def cosine(
    context: StepContext, state: PartState, *, of: str = "shape.alpha", start: float = 0.0, end: float = 0.5
) -> float | None:
    """From start to end along half a cosine: slow, fast, slow."""
    return end + (start - end) * (1 + math.cos(math.pi * context.progress)) / 2


def _begin(*, start: float, low: float, high: float, **_: Any) -> dict[str, float | Tensor]:
    if not low <= start <= high:
        raise ConfigError(f"objective.schedule.start={start}: must be between low={low} and high={high}")
    return {"value": start}


def _steer(
    state: PartState, row: Mapping[str, Any], *, target: float, gain: float, low: float, high: float, **_: Any
) -> PartState:
    displacement = row.get("displacement/chosen")
    if displacement is None:  # undefined: nothing to steer by
        return state
    return {"value": (state["value"] + gain * (target - displacement)).clamp(low, high)}


@register("schedule", stateful=StatefulPart(_begin, on_probe=_steer))
def adaptive(
    context: StepContext, state: PartState, *, of: str = "shape.alpha", start: float = 0.0, target: float = 0.0,
    gain: float = -1.0, low: float = -1.0, high: float = 2.0,
) -> float | None:  # fmt: skip
    """After every reading of the probe, value += gain (target - displacement/chosen), kept within [low, high].

    An integral controller that holds the chosen side's displacement at `target` nats per token. The pull on the chosen
    relative to the rejected side is e^{k (s_w - s_l)}, k = -alpha in the paper's convention and +alpha in the ratio's:
    a negative gain raises the chosen side under the first, a positive one under the second.
    """
    return float(state["value"])

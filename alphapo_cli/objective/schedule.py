"""Schedules: a parameter of another part that moves during training, from a `Moment` and memory to its value.

`of` names the parameter as KIND.NAME: shape.alpha, margin.factor, score.alpha, ...
"""

from __future__ import annotations

import math

from alphapo_cli.objective.comparison import Memory, Moment
from alphapo_cli.objective.parts import register


@register("schedule")
def constant(moment: Moment, memory: Memory) -> float | None:
    """Every parameter stays what it is."""
    return None


@register("schedule")
def linear(
    moment: Moment, memory: Memory, *, of: str = "shape.alpha", start: float = 0.0, end: float = 0.5
) -> float | None:
    """start + (end - start) t at the share t of training that is over; the last step is taken just before t = 1."""
    return start + (end - start) * moment.progress


@register("schedule")
def cosine(
    moment: Moment, memory: Memory, *, of: str = "shape.alpha", start: float = 0.0, end: float = 0.5
) -> float | None:
    """From start to end along half a cosine: slow, fast, slow."""
    return end + (start - end) * (1 + math.cos(math.pi * moment.progress)) / 2

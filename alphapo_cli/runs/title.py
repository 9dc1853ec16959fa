"""What a run is, in the words of its settings: the title of its pictures and of its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_SOURCES = {"glassbox": "the embedded world's model", "from_scratch": "a model from random weights"}
_PLAIN = ("identity", "none", None)


def title(settings: Mapping[str, Any], pairs: int | None = None) -> str:
    """Words for a run, as `alphapo, alpha 0.25, beta 2.5, learning rate 0.0008, Llama-3-8B, n = 256 held-out pairs`.

    Args:
        settings: the run's settings, as dotted keys; what is missing is left out.
        pairs: held-out pairs of its probe; None where that is not known.

    Returns:
        One line.
    """
    parts = [str(settings.get("objective.name") or "run")]
    alpha, schedule = settings.get("objective.shape.alpha"), settings.get("objective.schedule.name")
    ends = [settings.get(f"objective.schedule.{end}") for end in ("start", "end")]
    if schedule not in (None, "constant"):
        moves = f" from {_number(ends[0])} to {_number(ends[1])}" if None not in ends else ""
        parts.append(f"alpha {schedule}{moves}")
    elif alpha is not None and settings.get("objective.shape.name") not in _PLAIN:
        parts.append(f"alpha {_number(alpha)}")
    for name, key in (("beta", "objective.beta"), ("learning rate", "trainer.learning_rate")):
        if settings.get(key) is not None:
            parts.append(f"{name} {_number(settings[key])}")
    parts.append(_model(settings))
    if settings.get("model.lora.r") is not None:
        parts.append(f"LoRA of rank {settings['model.lora.r']}")
    if pairs:
        parts.append(f"n = {pairs:,} held-out pairs")
    return ", ".join(part for part in parts if part)


def _model(settings: Mapping[str, Any]) -> str:
    path, source = settings.get("model.path"), settings.get("model.source")
    if path:
        name = PurePath(str(path)).name
        return name or str(path)
    return _SOURCES.get(str(source), str(source or ""))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)

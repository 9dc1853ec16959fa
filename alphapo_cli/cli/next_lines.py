"""Lines that can be typed next, made from what is on disk."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

_FEW = 16  # prompts: enough to see what a model answers, few enough for a first try
# Settings by which prompts are found where pairs were.
_PLACE = ("name", "config", "data_dir", "revision")


def generate_line(model: Path | str | None) -> str:
    """The line that samples answers of a model: to the embedded world's prompts, or to some of those of a run's data.

    Args:
        model: a run directory, or what else `alphapo generate` takes; None: the embedded world's base.

    Returns:
        The line, which names the prompts wherever `alphapo generate` would ask which.
    """
    if model is None:
        return "alphapo generate"
    from alphapo_cli.config.embedded_world import WORLD
    from alphapo_cli.config.schema import DataConfig
    from alphapo_cli.generation.run_settings import run_around, run_folder
    from alphapo_cli.runs.identity import stored_settings

    line = f"alphapo generate {shlex.quote(str(model))}"
    run = run_folder(str(model)) or run_around(model)
    if run is None:
        return f"{line} data=jsonl data.path=PROMPTS.jsonl"
    stored = stored_settings(run / "config.yaml")
    source = stored.get("data.source", WORLD)
    if source == WORLD:
        return line
    found: list[tuple[str, Any]] = [("data", "hub" if source == "hub" else "jsonl")]
    path = stored.get("data.eval_path") or stored.get("data.path")
    if path:
        found[0] = ("data", "jsonl")
        found.append(("data.path", path))
    else:
        found += [(f"data.{key}", value) for key in _PLACE if (value := stored.get(f"data.{key}"))]
    split = None if stored.get("data.eval_path") else stored.get("data.eval_split") or stored.get("data.split")
    if split and split != DataConfig.split:
        found.append(("data.split", split))
    found.append(("data.limit", _FEW))
    return " ".join([line, *(shlex.quote(f"{key}={_written(value)}") for key, value in found)])


def is_of_world(run: Path) -> bool:
    """Whether a run's data, and so the prompts that it answers, are the embedded world's, which its default judge knows."""
    from alphapo_cli.config.embedded_world import WORLD
    from alphapo_cli.runs.identity import stored_settings

    return bool(stored_settings(run / "config.yaml").get("data.source", WORLD) == WORLD)


def _written(value: Any) -> str:
    """A value as an override has it."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)

"""What generation takes over from a training run: its way of writing prompts, and how its model is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.overrides import Line
from alphapo_cli.data.text_pairs import Side
from alphapo_cli.errors import UsageError

TAKEN_OVER = ("data.template", "data.system", "model.dtype", "model.trust_remote_code")


@dataclass(frozen=True)
class RecordedPrompts:
    """A training prompt and the ids that training conditioned on."""

    prompt: Side
    ids: tuple[int, ...]


@dataclass(frozen=True)
class RunRecord:
    """What training recorded. `max_length`, `max_prompt_length`: where it cut prompts."""

    prompts: tuple[RecordedPrompts, ...]
    source: str
    max_length: int
    max_prompt_length: int | None


def run_folder(model: str | None) -> Path | None:
    """The run directory that `model` names; None for anything else."""
    folder = Path(model).expanduser() if model is not None else None
    is_run = folder is not None and (folder / "config.yaml").is_file() and (folder / "summary.json").is_file()
    return folder if is_run else None


def run_layer(model: str | None) -> Line:
    """Settings of a run's configuration that hold for its answers, too; the command line wins over them.

    That a command line changes how prompts are written is found when the ids are compared with the recorded ones.
    """
    folder = run_folder(model)
    if folder is None:
        return Line()
    stored = OmegaConf.load(folder / "config.yaml")
    values = {key: OmegaConf.select(stored, key) for key in TAKEN_OVER}
    return Line((), {key: value for key, value in values.items() if value is not None})


def run_record(folder: Path) -> RunRecord:
    """The first training prompts of a run.

    Raises:
        UsageError: the run recorded none.
    """
    stored = OmegaConf.load(folder / "config.yaml")
    try:
        rows: list[dict[str, Any]] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        prompts = tuple(RecordedPrompts(_side(row["prompt"]), tuple(map(int, row["ids"]))) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: its prompts.json (the ids that training saw) cannot be read, so nobody knows whether generation "
            f"would see the same; generate from {folder / 'model'} to do without"
        ) from error
    return RunRecord(
        prompts,
        str(OmegaConf.select(stored, "data.source")),
        int(OmegaConf.select(stored, "data.max_length")),
        OmegaConf.select(stored, "data.max_prompt_length"),
    )


def _side(value: Any) -> Side:
    return value if isinstance(value, str) else tuple(dict(message) for message in value)

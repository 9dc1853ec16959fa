"""What generation inherits from a training run: the prompt format, the recorded prompts, and how to load its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.embedded_world import WORLD
from alphapo_cli.config.overrides import Line
from alphapo_cli.data.text_pairs import NO_CONTEXT, PromptContext, Side
from alphapo_cli.errors import UsageError

TAKEN_OVER = (
    "data.template", "data.system", "data.chat_template_kwargs", "data.completion_includes_header", "data.date",
    "data.special_tokens_in_text", "model.dtype", "model.trust_remote_code",
)  # fmt: skip


@dataclass(frozen=True)
class RecordedPrompts:
    """A training prompt with its context, and the ids that training conditioned on."""

    prompt: Side
    ids: tuple[int, ...]
    context: PromptContext = NO_CONTEXT


@dataclass(frozen=True)
class RunRecord:
    """The prompts of a training run. `max_length`, `max_prompt_length`: its truncation lengths in tokens."""

    prompts: tuple[RecordedPrompts, ...]
    source: str
    max_length: int
    max_prompt_length: int | None


def run_folder(model: str | None) -> Path | None:
    """`model` as a run directory; None for anything else."""
    folder = Path(model).expanduser() if model is not None else None
    is_run = folder is not None and (folder / "config.yaml").is_file() and (folder / "summary.json").is_file()
    return folder if is_run else None


def answers_world(model: str | None) -> bool:
    """Whether the embedded world's prompts are the ones to answer where none are named.

    Args:
        model: what `model` names; None for the world's base model.

    Returns:
        True for the base model, and for a run in the embedded world or the model saved in one.
    """
    if model is None:
        return True
    folder = run_folder(model) or run_folder(str(Path(model).expanduser().resolve().parent))
    return folder is not None and OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "data.source") == WORLD


def run_layer(model: str | None) -> Line:
    """Settings that generation inherits from a run's configuration; the command line wins over them.

    `parity.check_run` detects a command line that changes the prompt format.

    Args:
        model: what `model` names; anything but a run directory gives no settings.

    Returns:
        The settings as overrides.
    """
    folder = run_folder(model)
    if folder is None:
        return Line()
    stored = OmegaConf.load(folder / "config.yaml")
    return Line((), taken_over(stored))


def taken_over(cfg: Any) -> dict[str, Any]:
    """The settings of `TAKEN_OVER` in a configuration that say something, as overrides."""
    values = {key: OmegaConf.select(cfg, key) for key in TAKEN_OVER}
    plain = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in values.items()
    }
    return {key: value for key, value in plain.items() if value not in (None, {})}


def run_record(folder: Path) -> RunRecord:
    """Read the first training prompts of a run.

    Args:
        folder: the run directory.

    Returns:
        The prompts of prompts.json with their ids, and the run's truncation lengths.

    Raises:
        UsageError: prompts.json is missing or unreadable.
    """
    stored = OmegaConf.load(folder / "config.yaml")
    try:
        rows: list[dict[str, Any]] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        prompts = tuple(
            RecordedPrompts(_side(row["prompt"]), tuple(map(int, row["ids"])), PromptContext(**row.get("context", {})))
            for row in rows
        )
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

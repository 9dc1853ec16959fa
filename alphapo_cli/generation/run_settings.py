"""What generation inherits from a training run: the prompt format, the recorded prompts, and how to load its model."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.embedded_world import WORLD
from alphapo_cli.config.overrides import Line
from alphapo_cli.data.text_pairs import NO_CONTEXT, PromptContext, Side
from alphapo_cli.errors import UsageError, first_line, say
from alphapo_cli.runs.identity import read_settings
from alphapo_cli.runs.state import MODELS, RunState
from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import read_file

TAKEN_OVER = (
    "data.template", "data.system", "data.chat_template_kwargs", "data.completion_includes_header", "data.date",
    "data.special_tokens_in_text", "model.dtype", "model.trust_remote_code",
)  # fmt: skip
# Whoever wrote a directory does not consent to running its code: that is typed, on the line that runs it.
CONSENT = "model.trust_remote_code"


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


def run_around(model: str | Path) -> Path | None:
    """The run directory in which a model was saved, as model/ or models/step-N/; None for any other model."""
    folder = Path(model).expanduser().resolve()
    if folder.name == "model":
        return run_folder(str(folder.parent))
    return run_folder(str(folder.parent.parent)) if folder.parent.name == MODELS else None


def answers_world(model: str | None) -> bool:
    """Whether the embedded world's prompts are the ones to answer where none are named.

    Args:
        model: what `model` names; None for the world's base model.

    Returns:
        True for the base model, and for a run in the embedded world or the model saved in one.
    """
    if model is None:
        return True
    folder = run_folder(model) or run_around(model)
    return folder is not None and _stored(folder).get("data.source") == WORLD


def run_layer(model: str | None) -> Line:
    """Settings that generation inherits from a run's configuration; the command line wins over them.

    `parity.check_run` detects a command line that changes the prompt format.

    Args:
        model: what `model` names; anything but a run directory gives no settings.

    Returns:
        The settings as overrides, without `CONSENT`.

    Raises:
        UsageError: a setting holds an interpolation, which would read this process's environment; or the file is not as
            the run wrote it.
    """
    folder = run_folder(model)
    if folder is None:
        return Line()
    kept = {k: value for k, value in _stored(folder).items() if _is_taken_over(k) and value not in (None, {})}
    for key, value in kept.items():
        if "${" in str(value):
            raise UsageError(
                f"{folder / 'config.yaml'}: {key} holds an interpolation (${{...}}), which alphapo never stores and does "
                "not resolve; type the value you mean on this line"
            )
    check_settings(folder)
    return Line((), kept)


def check_settings(folder: Path) -> None:
    """Compare a run's config.yaml with what its manifest.json has of it.

    Args:
        folder: the run directory.

    Raises:
        UsageError: it is not as the run wrote it, or manifest.json is damaged.
    """
    run = RunState(folder)
    if run.manifest.is_file() and not run.read_manifest():
        raise UsageError(f"{run.manifest} is damaged; put it back from a copy, or name {folder / 'model'} itself")
    changed = run.changed_config()
    if changed is not None:
        raise UsageError(
            f"{run.config} is damaged ({changed}), so nobody knows how the run was trained; put it back from a copy, or "
            f"name {folder / 'model'} itself"
        )


def _stored(folder: Path) -> dict[str, Any]:
    """Dotted keys of a run's config.yaml, read as plain YAML: nothing in it is resolved."""
    file = folder / "config.yaml"
    try:
        return read_settings(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error}); put it back from a copy") from error


def _is_taken_over(key: str) -> bool:
    return key != CONSENT and any(key == name or key.startswith(f"{name}.") for name in TAKEN_OVER)


def taken_over(cfg: Any) -> dict[str, Any]:
    """The settings of `TAKEN_OVER` in a configuration that say something, as overrides."""
    values = {key: OmegaConf.select(cfg, key) for key in TAKEN_OVER}
    plain = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in values.items()
    }
    return {key: value for key, value in plain.items() if value not in (None, {})}


def run_record(folder: Path, *, unverified: bool = False) -> RunRecord | None:
    """Read the first training prompts of a run.

    Args:
        folder: the run directory.
        unverified: whether the user does without, where there are none.

    Returns:
        The prompts of prompts.json with their ids, and the run's truncation lengths; None where there are none.

    Raises:
        UsageError: prompts.json is missing, empty or unreadable, and the user does not do without.
    """
    stored, file = _stored(folder), folder / "prompts.json"
    try:
        checksums.check_beside(file)
        rows: list[dict[str, Any]] = json.loads(read_file(file))
        prompts = tuple(
            RecordedPrompts(_side(row["prompt"]), tuple(map(int, row["ids"])), PromptContext(**row.get("context", {})))
            for row in rows
        )
        empty = None if prompts and all(row.ids for row in prompts) else "it is empty"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        empty = first_line(error)
    if empty is not None:
        why = f"{folder}: its prompts.json (the ids that training saw) cannot be read ({empty}), so nothing can be compared"
        if unverified:
            say(f"note: {why} with what training saw", file=sys.stderr)
            return None
        raise UsageError(
            f"{why} and nobody knows whether generation would see the same; put it back from a copy, generate from "
            f"{folder / 'model'}, or type generation.accept_unverified_prompts=true"
        )
    return RunRecord(
        prompts,
        str(stored.get("data.source")),
        _length(folder, stored.get("data.max_length")) or 0,
        _length(folder, stored.get("data.max_prompt_length")),
    )


def _length(folder: Path, value: Any) -> int | None:
    if value is not None and not isinstance(value, int):
        raise UsageError(f"{folder / 'config.yaml'} is damaged (a length is {value!r}); put it back from a copy")
    return value


def _side(value: Any) -> Side:
    return value if isinstance(value, str) else tuple(dict(message) for message in value)

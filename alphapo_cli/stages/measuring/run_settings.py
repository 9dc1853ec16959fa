"""The settings under which a run's model is measured: those of its config.yaml, under the command line's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.config.compose import to_dict
from alphapo_cli.config.key_types import is_free
from alphapo_cli.config.keys import leaves
from alphapo_cli.config.objective_parts import PARTS
from alphapo_cli.config.overrides import Line, Sources
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import CONSENT, TAKEN_OVER, check_settings
from alphapo_cli.runs.identity import read_settings

# How a run's texts become token ids: these go along to other data.
_FORM = (*TAKEN_OVER, "data.max_length", "data.max_prompt_length")


def run_line(folder: Path, line: Line, sources: Sources) -> Line:
    """The settings of a run as a layer of overrides below the command line.

    Args:
        folder: the run directory.
        line: the command line; where it chooses a group anew, the run's settings of that group are left out.
        sources: the directories of YAML files.

    Returns:
        The layer, without the consent to run code of a hub repository.

    Raises:
        UsageError: config.yaml cannot be read, is not as the run wrote it, holds an interpolation, or names an objective
            of a YAML that is not here.
    """
    file = folder / "config.yaml"
    try:
        stored = read_settings(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error}); put it back from a copy") from error
    check_settings(folder)
    chosen = [choice.partition("=")[0].replace("/", ".") for choice in line.groups]
    values = {key: value for key, value in stored.items() if _known(key) and not _replaced(key, chosen)}
    for key, value in values.items():
        if "${" in str(value):
            raise UsageError(
                f"{file}: {key} holds an interpolation (${{...}}), which alphapo never stores and does not resolve; type "
                "the value you mean on this line"
            )
    return Line(tuple(_groups(stored, chosen, file, sources)), values)


def _known(key: str) -> bool:
    """Whether the value of a key can be set; the names of an objective's parts are chosen as groups."""
    if key == CONSENT or (key.startswith("objective.") and key.endswith(".name")):
        return False
    part = key.removeprefix("objective.").partition(".")[0]
    return key in leaves(to_dict(TrainConfig())) or part in PARTS or is_free(key)


def _replaced(key: str, chosen: list[str]) -> bool:
    """Whether a group that the command line chooses replaces the run's value of a key."""
    return key not in _FORM and any(key.startswith(f"{group}.") for group in chosen)


def _groups(stored: Mapping[str, Any], chosen: list[str], file: Path, sources: Sources) -> list[str]:
    """The objective and its parts as choices of groups, but for those that the command line chooses."""
    if "objective" in chosen:
        return []
    names = {"objective": stored.get("objective.name")}
    names |= {f"objective/{part}": stored.get(f"objective.{part}.name") for part in PARTS}
    found = {group: name for group, name in names.items() if name and group.replace("/", ".") not in chosen}
    known = sources.groups()
    for group, name in found.items():
        if name not in known.get(group, ()):  # a name with slashes would lead to a file of whoever wrote the directory
            raise UsageError(
                f"{file}: {group}={name} is none of the shipped ones; name the folder of its YAML by --config-dir, or choose "
                f"another by {group}="
            )
    return [f"{group}={name}" for group, name in found.items()]

"""Configuration of the cells: what differs between them, what was changed from the defaults, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from alphapo_cli.config.compose import compose
from alphapo_cli.config.embedded_world import NAMING, WORLD
from alphapo_cli.config.objective_parts import GAMMAS, PARTS
from alphapo_cli.config.overrides import Sources, quoted, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.report.collect import ReportCell, Sweep
from alphapo_cli.runs import format_version, identity

_ABSENT = object()


@dataclass(frozen=True)
class Setting:
    """One key that all cells agree on; `default` is its value in `alphapo train` without overrides."""

    key: str
    value: str
    default: str | None  # None where `value` is the default


@dataclass(frozen=True)
class Settings:
    """The configuration table."""

    differing: list[str]  # keys that not all cells agree on
    rows: list[tuple[ReportCell, list[str]]]  # a cell's values of these keys
    shared: list[Setting]


def settings(sweep: Sweep) -> Settings:
    """The configuration of all cells that have started."""
    started = [c for c in sweep.cells if c.settings]
    keys = list(dict.fromkeys(k for c in started for k in c.settings))
    differing = [k for k in keys if any(_value(c, k) != _value(started[0], k) for c in started)]
    # Swept keys first, as they were given; a group (objective=dpo,simpo) is not a key of the configuration.
    swept = [k for k in sweep.keys if k in differing]
    rest = [k for k in differing if k not in swept and k != "seed"]
    differing = [*swept, *rest, *(["seed"] if "seed" in differing else [])]
    defaults = _defaults(())
    shared = []
    for key in keys:
        if key not in differing:
            value, default = started[0].settings[key], defaults.get(key, _ABSENT)
            changed = None if value == default else "-" if default is _ABSENT else text(default)
            shared.append(Setting(key, text(value), changed))
    rows = [(c, [text(c.settings[k]) if k in c.settings else "-" for k in differing]) for c in started]
    return Settings(differing, rows, shared)


def _value(cell: ReportCell, key: str) -> Any:
    return cell.settings.get(key, _ABSENT)


def typed(sweep: Sweep) -> list[str]:
    """The distinct commands of the cells' manifests, as typed, in the order of the cells."""
    lines = []
    for cell in sweep.cells:
        argv = cell.manifest.get("command")
        words = [str(word) for word in argv] if isinstance(argv, list) else []
        # Skip the commands of workers of other launchers.
        if len(words) > 1 and words[1] in ("sweep", "train", "run"):
            lines.append(shlex.join([*_started(words[1], cell.manifest.get("processes")), *words[1:]]))
    return list(dict.fromkeys(lines))


def _started(command: str, processes: Any) -> list[str]:
    """What starts a command: torchrun, where it was started in several processes. A sweep starts its cells' own."""
    if command == "sweep" or not isinstance(processes, int) or processes < 2:
        return ["alphapo"]
    return ["torchrun", "--nproc-per-node", str(processes), "-m", "alphapo_cli"]


class Commands:
    """Builds `alphapo train` commands that reproduce the configuration of cells."""

    def __init__(self) -> None:
        # Memoized by keys: composing takes a tenth of a second, and hundreds of cells may set the same few keys.
        self.known: dict[tuple[str, ...], bool] = {}

    def of(self, cell: ReportCell) -> str | None:
        """The command; None where overrides of the shipped conf/ cannot express it (an objective from --config-dir)."""
        settings = dict(cell.settings)
        if settings.get("model.path") is not None:
            settings["model.source"] = "path"  # earlier versions wrote what is not read beside a path
        groups, changed = self._difference(settings)
        overrides = [*groups, *_overrides(changed)]
        kind = (*groups, *changed)
        if kind not in self.known:
            self.known[kind] = bool(settings) and _defaults(tuple(overrides)) == settings
        return shlex.join(["alphapo", "train", *overrides]) if self.known[kind] else None

    def _difference(self, settings: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """The groups to choose, and the values to set then, to get from the defaults to `settings`."""
        objective = settings.get("objective.name")
        groups = [f"objective={objective}"]
        base = _defaults(tuple(groups))
        if not base:
            groups, base = [], _defaults(())
        parts = {part: settings.get(f"objective.{part}.name") for part in PARTS}
        groups += [
            f"objective/{part}={name}" for part, name in parts.items() if name != base.get(f"objective.{part}.name")
        ]
        # Model and data decide on other settings, so both are named, unless they are the embedded world's.
        naming = [f"{group}.{key}" for group, keys in NAMING.items() for key in keys]
        named = {key: settings.get(key) for key in naming if settings.get(key) is not None}
        if (settings.get("model.source"), settings.get("data.source")) == (WORLD, WORLD):
            named = {}
        base = _defaults((*groups, *_overrides(named)))
        changed = {**named, **{k: v for k, v in settings.items() if base.get(k, _ABSENT) != v}}
        # Setting one of the two gammas makes the other null.
        for one, other in (GAMMAS, GAMMAS[::-1]):
            if changed.get(one) is not None and settings.get(other) is None:
                changed.pop(other, None)
        return groups, changed


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_typed(value)}" for key, value in values.items()]


@lru_cache(maxsize=256)
def _defaults(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The settings of `alphapo train` under `overrides`; empty where they do not compose."""
    sources = Sources()
    try:
        return identity.settings(compose("train", TrainConfig, [read_line(overrides, sources)], sources))
    except ConfigError:
        return {}


def text(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return repr(value) if isinstance(value, float) else str(value)


def _typed(value: Any) -> str:
    """A value as an override; text is quoted where Hydra's grammar would parse it as something else."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "_./+-" for c in value)
        reserved = value.lower() in ("null", "true", "false", "nan", "inf") or _is_number(value)
        if not plain or reserved:
            return quoted(value)
    return text(value)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def versions(sweep: Sweep) -> list[tuple[str, str]]:
    """Versions, commit, hardware and data hash of the cells; several values where a sweep was resumed under others."""
    packages = ("alphapo", "torch", "transformers", "python")
    found: dict[str, list[str]] = {}
    for cell in sweep.cells:
        made = cell.manifest
        known, hardware = _mapping(made.get("versions")), _mapping(made.get("hardware"))
        gpus = hardware.get("gpus") or []
        facts = {
            **{p: known.get(p) for p in packages},
            "numerics": format_version.numerics_of(made) if made else None,
            "commit": made.get("git_commit"),
            "hardware": ", ".join(map(str, gpus)) or hardware.get("cpu"),
            "data": str(_mapping(made.get("data")).get("key") or "")[:12] or None,
        }
        for name, value in facts.items():
            if value:
                found.setdefault(name, []).append(str(value))
    return [(name, " and ".join(dict.fromkeys(values))) for name, values in found.items()]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def command_of_report(paths: Sequence[Path]) -> str:
    """The command that writes a report of these directories again."""
    return shlex.join(["alphapo", "report", *(PurePath(path.resolve()).as_posix() for path in paths)])

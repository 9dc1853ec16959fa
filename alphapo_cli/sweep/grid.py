"""Cells of a sweep, each a resolved configuration with its id, from a sweep's name or file and a command line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from alphapo_cli.config.compose import compose, compose_each
from alphapo_cli.config.config_file import ConfigFile
from alphapo_cli.config.hydra_parser import OverridesParser
from alphapo_cli.config.key_types import takes_text
from alphapo_cli.config.objective_parts import GAMMAS
from alphapo_cli.config.overrides import Line, Sources, as_typed, parse, quoted, raw_value, read_line, split
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.config.shipped import shipped
from alphapo_cli.errors import ConfigError, first_line, nearest
from alphapo_cli.runs.identity import chosen, identity, settings
from alphapo_cli.storage.hashing import digest


@dataclass(frozen=True)
class SweepFile:
    """A named sweep: `base` overrides, and `grid` from key to a Hydra sweep string."""

    name: str
    description: str = ""
    base: tuple[str, ...] = ()
    grid: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One configuration of a grid."""

    id: str
    point: Mapping[str, Any]  # swept key -> value
    overrides: tuple[str, ...]  # the point as override strings
    cfg: TrainConfig


@dataclass(frozen=True)
class Grid:
    """All cells, and the identity of the sweep they belong to."""

    name: str
    description: str
    base: Mapping[str, Any]  # resolved settings that are not swept, those at their defaults included
    keys: tuple[str, ...]  # swept keys, in order
    cells: tuple[Cell, ...]

    @property
    def hash(self) -> str:
        """Identity of the sweep, for its directory's name: base settings and swept keys."""
        return digest([chosen(self.base), sorted(self.keys)])[:8]


def find(name: str) -> SweepFile:
    """Read a sweep file.

    Args:
        name: name of a shipped sweep, or path of a .yaml or .yml file.

    Returns:
        The file's content; a value of `grid` may still be any Hydra sweep string.

    Raises:
        ConfigError: there is no such file, or its content is not of the form {description, base, grid}.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped("sweeps") / f"{name}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in shipped("sweeps").glob("*.yaml"))
            raise ConfigError(
                f"sweep '{name}': no such sweep{nearest(name, known)} (there are: {', '.join(known)}; or give a FILE.yaml)"
            )
    if not path.is_file():
        raise ConfigError(f"sweep file {path}: no such file")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise ConfigError(f"sweep file {path}: {first_line(error)}") from error
    allowed = ("description", "base", "grid")
    if (
        not isinstance(loaded, dict)
        or not isinstance(loaded.get("grid", {}), dict)
        or not isinstance(loaded.get("base", []), list)
    ):
        raise ConfigError(
            f"sweep file {path}: must hold description (text), base (a list of overrides) and grid (key: values)"
        )
    for key in map(str, loaded):
        if key not in allowed:
            raise ConfigError(
                f"sweep file {path}: unknown key '{key}'{nearest(key, allowed)} (keys: {', '.join(allowed)})"
            )
    grid = {str(k): _sweep_text(v) for k, v in loaded.get("grid", {}).items()}
    return SweepFile(path.stem, str(loaded.get("description", "")), tuple(str(t) for t in loaded.get("base", [])), grid)


def _sweep_text(value: Any) -> str:
    """A value of `grid` as a Hydra sweep string. An item of a list is one value, even with a comma in it."""
    return ",".join(_item(v) for v in value) if isinstance(value, list) else str(value)


def _item(value: Any) -> str:
    if not isinstance(value, str):
        return _text(value)
    try:
        several = OverridesParser.create().parse_override(f"item={value}").is_choice_sweep()
    except HydraException:
        return quoted(value)
    return quoted(value) if not value or (several and not value.startswith("choice(")) else value


def make(name: str | None, texts: Sequence[str], sources: Sources, settings_file: ConfigFile | None = None) -> Grid:
    """Make the grid of a sweep.

    A swept key on the command line replaces the file's values for it, a comma list or range on a new key adds a
    dimension, a single value changes the base.

    Args:
        name: as for `find`; None if the command line alone says what is swept.
        texts: overrides of the command line.
        sources: config directories.
        settings_file: the file of --config, beneath everything else; None without one.

    Returns:
        All cells, without duplicates.

    Raises:
        ConfigError: a name is unknown, a value is invalid in some cell, a swept key changes no cell, both gammas are
            set, or no key is swept.
    """
    file = find(name) if name else SweepFile("sweep")
    swept: dict[str, Override] = {}
    for key, values in file.grid.items():
        (swept[key],) = parse([f"{key}={values}"])
    single: list[Override] = []
    for override in parse(texts):
        if override.is_sweep_override() or override.key_or_group in swept:  # the last one counts
            swept[override.key_or_group] = override
        else:
            single.append(override)
    layers = [read_line(file.base, sources), split(single, sources)]
    if settings_file is not None:
        layers.insert(0, settings_file.layer(layers, sources, swept))
    if not swept:
        compose("train", TrainConfig, layers, sources)  # a typo first
        raise ConfigError(
            "nothing to sweep: name a sweep (alphapo sweep alpha) or give a key several values (seed=0,1,2)"
        )
    given = {*swept, *(override.key_or_group for override in single)}
    if given.issuperset(GAMMAS):
        raise ConfigError(f"{GAMMAS[0]} and {GAMMAS[1]} are both given: give one (gamma = beta x ratio)")
    points = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*(_values(o) for o in swept.values()))
    ]
    cells: dict[str, Cell] = {}
    lines = [_line(point, sources) for point in points]
    ids = []
    for point, cfg in zip(points, compose_each("train", TrainConfig, layers, lines, sources), strict=True):
        overrides = tuple(f"{key}={_text(value)}" for key, value in point.items())
        cell = Cell(digest(identity(cfg))[:10], point, overrides, cfg)
        cells.setdefault(cell.id, cell)
        ids.append(cell.id)
    _check_keys(swept, points, ids)
    first = next(iter(cells.values()))
    return Grid(
        file.name, file.description, _base(first.cfg, tuple(swept), layers), tuple(swept), tuple(cells.values())
    )


def _check_keys(swept: Mapping[str, Override], points: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> None:
    """Raise ConfigError if a swept key changes no cell: its other values would be dropped silently."""
    for key, override in swept.items():
        found: dict[str, set[str]] = {}
        for point, cell in zip(points, ids, strict=True):
            found.setdefault(repr({k: v for k, v in point.items() if k != key}), set()).add(cell)
        several = len({repr(point[key]) for point in points}) > 1
        if several and all(len(cells) == 1 for cells in found.values()):
            raise ConfigError(f"'{override.input_line}': no cell differs by it; give it one value")


def _base(cfg: TrainConfig, keys: tuple[str, ...], layers: Sequence[Line]) -> dict[str, Any]:
    """Resolved settings outside the swept keys, and overrides of keys inside a swept config group."""
    inside = tuple(k.replace("/", ".") for k in keys)

    def is_swept(name: str) -> bool:
        return any(name == k or name.startswith(f"{k}.") for k in inside)

    resolved = {k: v for k, v in settings(cfg).items() if not is_swept(k)}
    said = {k: v for layer in layers for k, v in layer.values.items() if is_swept(k) and k not in keys}
    return {**resolved, **{f"given {k}": v for k, v in said.items()}}


def _line(point: Mapping[str, Any], sources: Sources) -> Line:
    """The overrides of one cell. Values are not written out and parsed again: a text could become another type."""
    known = sources.groups()
    groups = {key: value for key, value in point.items() if "/" in key or key in known}
    chosen = read_line([f"{key}={_text(value)}" for key, value in groups.items()], sources)
    return Line(chosen.groups, {key: value for key, value in point.items() if key not in groups})


def _values(override: Override) -> list[Any]:
    raw = raw_value(override)
    values: list[Any]
    if override.is_sweep_override():
        values = [v.text if isinstance(v, QuotedString) else v for v in override.sweep_iterator()]
        if raw.startswith("choice("):
            raw = raw.removeprefix("choice(").removesuffix(")")
    else:
        values = [override.value()]
    if not values:
        raise ConfigError(f"'{override.input_line}' holds no value; write range(start,stop,step), stop left out")
    if takes_text(TrainConfig, override.key_or_group):
        return as_typed(values, raw)
    return [_plain(v) for v in values]


def _plain(value: Any) -> Any:
    """Round floats to 12 decimals and make whole ones int: 0, 0.0 and -0.0 are one value."""
    if isinstance(value, float):
        value = round(value, 12) + 0.0
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)

"""A file of settings, `--config FILE.yaml`: what `--print-config` prints, or a part of it, beneath the command line.

The settings become one layer of overrides. A part of an objective, a judge or a launcher that the file names is chosen as
its config group, so that a file with a part of the settings gets the group's defaults for the rest. Where the command
line chooses a group, the file's settings of that group do not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from alphapo_cli.config.compose import compose, to_dict
from alphapo_cli.config.embedded_world import WORLD, names
from alphapo_cli.config.key_types import FREE
from alphapo_cli.config.keys import leaves
from alphapo_cli.config.objective_parts import PARTS
from alphapo_cli.config.overrides import Line, Sources
from alphapo_cli.config.renamed import suggestion
from alphapo_cli.errors import ConfigError, UsageError

# Dotted keys that hold the choice of a group, and the group.
_NAMES = {f"objective.{kind}.name": f"objective/{kind}" for kind in PARTS} | {
    f"{group}.name": group for group in ("objective", "judge", "launcher")
}
T = TypeVar("T")

_BROUGHT = ("trainer", "probe")  # groups whose settings the embedded world brings


@dataclass(frozen=True)
class ConfigFile:
    """The settings of a file.

    Attributes:
        path: the file, for messages.
        settings: dotted keys and values, in the order of the file.
        places: dotted key -> line of the file, from 1.
    """

    path: Path
    settings: Mapping[str, Any]
    places: Mapping[str, int]

    def part(self, names: Collection[str], renamed: Mapping[str, str] | None = None) -> ConfigFile:
        """The settings of some top-level sections.

        Args:
            names: the sections.
            renamed: sections that have another name in the part -> that name.

        Returns:
            The part.
        """
        other = renamed or {}

        def name_in_part(key: str) -> str:
            head, dot, rest = key.partition(".")
            return f"{other.get(head, head)}{dot}{rest}"

        found = {name_in_part(k): v for k, v in self.settings.items() if k.partition(".")[0] in names}
        return ConfigFile(self.path, found, {name_in_part(k): line for k, line in self.places.items()})

    def without(self, section: str) -> ConfigFile:
        """The settings outside a top-level section."""
        return self.part({key.partition(".")[0] for key in self.settings} - {section})

    def within(self, section: str) -> ConfigFile:
        """The file as settings of one section, whether it names the section or holds the content of it alone."""
        if any(key.startswith(f"{section}.") for key in self.settings):
            return self
        settings = {f"{section}.{key}": value for key, value in self.settings.items()}
        return ConfigFile(self.path, settings, {f"{section}.{key}": line for key, line in self.places.items()})

    def layer(self, above: Sequence[Line], sources: Sources, swept: Collection[str] = ()) -> Line:
        """The settings as a layer of overrides.

        Args:
            above: the layers that lie above it; settings of groups that they choose are left out.
            sources: the directories of YAML files, for the groups and their choices.
            swept: keys and groups that a sweep sets, too.

        Returns:
            The layer.

        Raises:
            ConfigError: the file names a choice that its group does not have; an experiment is chosen beside the file;
                or it has settings of the embedded world for another model or other data.
        """
        chosen = {choice.partition("=")[0] for line in above for choice in line.groups} | {*swept}
        if "experiment" in chosen:
            raise ConfigError(
                f"--config {self.path} and experiment=...: both hold settings of all groups; give one, and the rest as "
                "overrides"
            )
        self._check_world(above, chosen)
        groups, values = {}, {}
        for key, value in self.settings.items():
            group = key.replace(".", "/")
            named = group if group in sources.groups() and isinstance(value, str) else _NAMES.get(key)
            if any(_lies_in(key, other) for other in chosen):
                continue
            if named is not None and (key not in _NAMES or value in sources.groups()[named] or "/" in named):
                groups[named] = self._choice(key, named, value, sources)
            elif key not in _NAMES or named in ("objective", "judge", "launcher"):
                values[key] = value
        return Line(tuple(f"{k}={v}" for k, v in groups.items() if v is not None), values, dict(values))

    def _choice(self, key: str, group: str, value: Any, sources: Sources) -> Any:
        known = sources.groups()[group]
        if value is not None and value not in known:
            raise ConfigError(
                f"{self.path}: line {self.places[key]}: {key}: no such {group} '{value}'"
                f"{suggestion(group, str(value), known)} (choices: {', '.join(known)})"
            )
        return value

    def _check_world(self, above: Sequence[Line], chosen: Collection[str]) -> None:
        """Refuse (ConfigError) the world's settings of training for a model or data of the user's own."""
        if self.settings.get("data.source", self.settings.get("data")) != WORLD:
            return
        brought = [g for g in _BROUGHT if g not in chosen and any(k.startswith(f"{g}.") for k in self.settings)]
        own = [
            Line(tuple(c for c in line.groups if c not in (f"data={WORLD}", f"model={WORLD}")), line.values)
            for line in above
        ]
        if brought and (names(own, "data") or names(own, "model")):
            typed = " ".join(f"{group}=default" for group in brought)
            raise ConfigError(
                f"{self.path} holds settings of the embedded world ({', '.join(brought)}), and the command line names "
                f"another model or other data: type {typed} too"
            )

    def merged(self, primary: str, schema: type[Any], line: Line, sources: Sources) -> Line:
        """The settings that are not at their defaults, and a line above them, as one line.

        Args:
            primary: the primary config whose defaults count.
            schema: its type.
            line: the overrides of the command line.
            sources: the directories of YAML files.

        Returns:
            The line; the same as `line` for a file that holds defaults alone.

        Raises:
            ConfigError: as for `layer`, or a setting is invalid.
        """
        layer = self.layer([line], sources)
        with self.named([line]):
            compose(primary, schema, [layer], sources)
            default = leaves(to_dict(compose(primary, schema, [Line(layer.groups)], sources)))
        values = {key: value for key, value in layer.values.items() if default.get(key) != value} | {**line.values}
        standard = leaves(to_dict(compose(primary, schema, [], sources)))
        usual = [f"{_NAMES[key]}={value}" for key, value in standard.items() if key in _NAMES]
        groups = [choice for choice in layer.groups if choice not in usual]
        return Line((*groups, *line.groups), values, {**layer.texts, **line.texts})

    @contextlib.contextmanager
    def named(self, above: Sequence[Line]) -> Iterator[None]:
        """Within the block, an error about a key that only the file sets names the file and the line.

        Args:
            above: the layers above the file.

        Yields:
            Nothing.

        Raises:
            ConfigError: the block raised one.
        """
        try:
            yield
        except ConfigError as error:
            text = str(error)
            typed = {key for line in above for key in line.values}
            found = [k for k in self.settings if k not in typed and (k in text or _unknown_part(k, text))]
            if not found or text.startswith(f"{self.path}: line"):
                raise
            key = max(found, key=len)
            raise ConfigError(f"{self.path}: line {self.places.get(key, 1)}: {text}") from error


def compose_under(
    file: ConfigFile | None,
    primary: str,
    schema: type[T],
    layers: Sequence[Line],
    sources: Sources,
    beneath: Sequence[Line] = (),
) -> T:
    """`compose` with the settings of a file beneath the layers of a command line.

    Args:
        file: the file; None without one.
        primary: the primary config.
        schema: the type of the configuration.
        layers: of the command line.
        sources: the directories of YAML files.
        beneath: layers beneath the file.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: as for `compose`; of a setting in the file with its name and line.
    """
    if file is None:
        return compose(primary, schema, [*beneath, *layers], sources)
    with file.named(layers):
        return compose(primary, schema, [*beneath, file.layer(layers, sources), *layers], sources)


def _unknown_part(key: str, text: str) -> bool:
    """Whether a message says that the beginning of `key` is no key."""
    parts = key.split(".")
    return any(f"unknown key '{'.'.join(parts[:n])}'" in text for n in range(1, len(parts)))


def _lies_in(key: str, chosen: str) -> bool:
    """Whether `key` belongs to a group (with slashes) that is chosen, or is a swept key itself."""
    dotted = chosen.replace("/", ".")
    return key == dotted or key.startswith(f"{dotted}.")


def load(path: Path | None) -> ConfigFile | None:
    """Read a file of settings.

    Args:
        path: the file of --config; None without one.

    Returns:
        The settings; None without a file.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is no YAML mapping, names a key twice, or has a defaults list.
    """
    if path is None:
        return None
    path = path.expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "; a folder of YAML is for --config-dir" if path.is_dir() else ""
        raise UsageError(f"--config {path}: cannot be read ({error.strerror or error}){hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 text; save it as UTF-8") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        settings, places = _flat(node, path)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not a YAML file ({' '.join(str(error).split())}); correct it") from error
    if "defaults" in settings:
        raise ConfigError(
            f"--config {path}: line {places['defaults']}: a defaults list is for files of --config-dir; here a group is "
            "chosen by its name, as in `objective: dpo`"
        )
    return ConfigFile(path, settings, places)


def _flat(node: yaml.Node | None, path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Dotted keys with their values, and with their lines."""
    settings: dict[str, Any] = {}
    places: dict[str, int] = {}
    loader = yaml.SafeLoader("")

    def visit(mapping: yaml.Node, prefix: str) -> None:
        for key_node, value_node in mapping.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in places:
                raise ConfigError(
                    f"--config {path}: line {line}: {key} a second time, after line {places[key]}; keep one"
                )
            places[key] = line
            if isinstance(value_node, yaml.MappingNode) and key not in FREE:
                visit(value_node, f"{key}.")
            else:
                settings[key] = loader.construct_object(value_node, deep=True)

    if node is None:
        return settings, places
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"--config {path}: must hold settings as `alphapo train --print-config` prints them (key: value)"
        )
    visit(node, "")
    return settings, places

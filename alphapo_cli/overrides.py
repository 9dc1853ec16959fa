"""The command line as overrides: Hydra's own grammar, with what hydra.compose would swallow refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from alphapo_cli.errors import ConfigError, nearest
from alphapo_cli.locations import shipped


@dataclass(frozen=True)
class Sources:
    """Where YAML is looked for: the shipped conf/ and, before it, the user's `--config-dir`."""

    user: Path | None = None

    @property
    def roots(self) -> list[Path]:
        return [*([self.user] if self.user else []), shipped("conf")]

    def groups(self) -> dict[str, list[str]]:
        """Every group and its choices, e.g. {"objective/shape": ["identity", "power"]}."""
        found: dict[str, set[str]] = {}
        for root in self.roots:
            for file in root.rglob("*.yaml"):
                group = file.parent.relative_to(root).as_posix()
                if group != ".":
                    found.setdefault(group, set()).add(file.stem)
        return {group: sorted(names) for group, names in sorted(found.items())}

    def file(self, group: str, name: str) -> Path | None:
        return next((p for root in self.roots if (p := root / group / f"{name}.yaml").is_file()), None)


@dataclass(frozen=True)
class Line:
    """One layer of overrides (a sweep's base, the command line, a cell), parsed and split in groups and values."""

    groups: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def parse(texts: Iterable[str]) -> list[Override]:
    """Hydra's own grammar, with what compose() would swallow refused.

    Raises:
        ConfigError: a text that is not an override, `hydra.*`, or a deletion.
    """
    parsed = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].strip().rstrip(".")
            raise ConfigError(f"'{text}' is not an override (write key=value): {reason}") from error
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"'{text}': hydra.* settings have no effect here; a run's directory is run.dir and run.name"
            )
        if override.is_delete():
            raise ConfigError(f"'{text}': keys cannot be deleted; set {key.lstrip('~')}=null")
        if override.package is not None:
            raise ConfigError(f"'{text}': packages (@) are not supported on the command line")
        parsed.append(override)
    return parsed


def split(overrides: Sequence[Override], sources: Sources) -> Line:
    """Separate choices of groups from values; the choice must exist.

    Raises:
        ConfigError: an unknown choice, or a sweep (comma list or range) outside `alphapo sweep`.
    """
    groups, values = [], {}
    known = sources.groups()
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override():
            raise ConfigError(f"'{text}' lists several values: use alphapo sweep {text}")
        if key in known:
            choice = override.value()
            if choice not in known[key] and not (choice is None and key == "experiment"):
                raise ConfigError(
                    f"{key}={shown(choice)}: no such {key}{nearest(str(choice), known[key])} (choices: {', '.join(known[key])})"
                )
            groups.append(f"{key}={'null' if choice is None else choice}")
        elif "/" in key:
            raise ConfigError(f"'{text}': no such group '{key}'{nearest(key, known)} (groups: {', '.join(known)})")
        else:
            values[key] = override.value()
    return Line(tuple(groups), values)


def read_line(texts: Iterable[str], sources: Sources) -> Line:
    """`parse` and `split`."""
    return split(parse(texts), sources)


def shown(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

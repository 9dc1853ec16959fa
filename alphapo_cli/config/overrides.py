"""Command-line overrides in Hydra's grammar, without the forms that have no meaning here.

A value that the grammar rejects (`data.path=/tmp/ü`, `run.name=a=b`) is taken as verbatim text; only where it could
mean something else (commas, an opening quote or bracket) is it an error, which shows how to quote it.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from alphapo_cli.config.hydra_parser import OverridesParser
from alphapo_cli.config.renamed import suggestion
from alphapo_cli.config.shipped import shipped
from alphapo_cli.errors import ConfigError, first_line, nearest


@dataclass(frozen=True)
class Sources:
    """The directories of YAML files: the user's `--config-dir`, where given, then the shipped conf/."""

    user: Path | None = None

    @property
    def roots(self) -> list[Path]:
        """The directories, in the order in which they are searched."""
        return [*([self.user] if self.user else []), shipped("conf")]

    @functools.lru_cache(maxsize=16)  # noqa: B019 - frozen, and holds one path
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
        """The file of a choice of a group, or None."""
        return next((p for root in self.roots if (p := root / group / f"{name}.yaml").is_file()), None)


@dataclass(frozen=True)
class Line:
    """One layer of overrides (a sweep's base, the command line, a cell), parsed and split into groups and values."""

    groups: tuple[str, ...] = ()  # "group=choice"
    values: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value
    texts: Mapping[str, Any] = field(default_factory=dict)  # the values as typed, for keys that take a text


def parse(texts: Iterable[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar.

    Args:
        texts: the overrides, as typed.

    Returns:
        One override per text.

    Raises:
        ConfigError: a text is not an override, sets hydra.*, deletes a key, or uses glob() or a package.
    """
    parsed = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            override = _verbatim(text, error)
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"'{text}': hydra.* settings have no effect here; a run's directory is run.dir and run.name"
            )
        if override.is_delete():
            raise ConfigError(f"'{text}': keys cannot be deleted; set {key.lstrip('~')}=null")
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise ConfigError(f"'{text}': glob() is not supported; list the choices, as in {key}=a,b")
        if override.package is not None:
            raise ConfigError(f"'{text}': packages (@) are not supported on the command line")
        parsed.append(override)
    return parsed


def _verbatim(text: str, error: HydraException) -> Override:
    """The override of a text that the grammar rejected, its value verbatim; raises ConfigError where ambiguous."""
    key, equals, raw = text.partition("=")
    reason = first_line(error).rstrip(".")
    try:
        empty = OverridesParser.create().parse_override(f"{key}=")
    except HydraException:
        equals = ""
    if not equals:
        raise ConfigError(f"'{text}' is not an override (write key=value): {reason}") from error
    raw = raw.strip()
    if "," in raw or "${" in raw or raw.startswith(("'", '"', "[", "{", "(")):
        several = _several(key, raw)
        hint = "" if "${" in raw else f"; as {'one ' if several else ''}text, type {_typed(key, raw)}"
        hint = f"{hint}; as several values, type {several}" if hint and several else hint
        raise ConfigError(f"'{text}' is not an override: {reason}{hint}") from error
    return replace(empty, _value=QuotedString(raw, Quote.single), input_line=text)


def _typed(key: str, text: str) -> str:
    """What to type in a shell to set `key` to the text."""
    quote = "'" if '"' in text and "'" not in text else '"'
    return shlex.quote(f"{key}={quoted(text, quote)}")


def _several(key: str, raw: str) -> str | None:
    """What to type in a shell to give `key` the values in `raw`, each quoted where it must be; None for a single one."""
    values = _split(raw)
    if len(values) < 2 or not all(values) or raw.startswith(("'", '"', "[", "{", "(")):
        return None
    if re.search(r",\s", raw) and ("'" in raw or '"' in raw):  # a sentence
        return None
    words = []
    for value in values:
        try:
            OverridesParser.create().parse_override(f"{key}={value}")
            words.append(value)
        except HydraException:
            words.append(quoted(value, '"' if "'" in value and '"' not in value else "'"))
    typed = f"{key}={','.join(words)}"
    # Double quotes are easier to read, where the shell leaves all between them as it is.
    return f'"{typed}"' if "'" in typed and not any(char in typed for char in '"$`\\!') else shlex.quote(typed)


def _split(raw: str) -> list[str]:
    """The values of a list, at its commas outside of brackets where the brackets are in pairs."""
    if any(raw.count(opens) != raw.count(closes) for opens, closes in ("()", "[]", "{}")):
        return [value.strip() for value in raw.split(",")]
    values, depth = [""], 0
    for char in raw:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            values.append("")
        else:
            values[-1] += char
    return [value.strip() for value in values]


def typed(key: str, value: Any) -> str:
    """What to type in a shell to give `key` a value that a configuration has."""
    if isinstance(value, list):
        return shlex.quote(f"{key}=[{','.join(_literal(item) for item in value)}]")
    return shlex.quote(f"{key}={_literal(value)}")


def _literal(value: Any) -> str:
    """A value in the grammar; a text in quotes where it would be read as anything else."""
    if not isinstance(value, str):
        return shown(value)
    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        read = None
    return value if isinstance(read, str) and read == value and "," not in value else quoted(value)


def quoted(text: str, quote: str = "'") -> str:
    """`text` as a quoted value of the grammar, which doubles backslashes before a quote and at the end only."""
    inner = re.sub(rf"(\\*){quote}", lambda m: m[1] * 2 + "\\" + quote, text)
    inner += "\\" * (len(inner) - len(inner.rstrip("\\")))
    return f"{quote}{inner}{quote}"


def as_typed(values: list[Any], raw: str) -> list[Any]:
    """Replace numbers and booleans among `values` by the texts that they were parsed from.

    2024_01 and 1e3 are numbers to the grammar and may yet be meant as names.

    Args:
        values: the parsed values.
        raw: their text, separated by commas.

    Returns:
        The values with the replacements; unchanged where `raw` does not split into as many texts or calls a function.
    """
    items = [item.strip() for item in raw.split(",")]
    if len(items) != len(values):
        return values
    if "(" in raw:
        return values
    return [i if isinstance(v, (bool, int, float)) else v for v, i in zip(values, items, strict=True)]


def raw_value(override: Override) -> str:
    """The text of an override after its first `=`."""
    return str(override.input_line).partition("=")[2].strip()


def _text_of(override: Override) -> Any:
    """The override's value, with numbers and booleans as typed."""
    value, raw = override.value(), raw_value(override)
    if isinstance(value, list):
        return as_typed(value, raw.removeprefix("[").removesuffix("]"))
    return as_typed([value], raw)[0]


def split(overrides: Sequence[Override], sources: Sources) -> Line:
    """Separate choices of groups from values.

    Args:
        overrides: the parsed overrides.
        sources: the directories of YAML files, for the groups and their choices.

    Returns:
        The layer of overrides.

    Raises:
        ConfigError: a group or choice does not exist, or an override lists several values, as for a sweep.
    """
    groups, values, typed = [], {}, {}
    known = sources.groups()
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override():
            has_texts = override.is_choice_sweep() and any(
                isinstance(v, (str, QuotedString)) for v in override.sweep_iterator()
            )
            hint = f", or as one text type {_typed(key, raw_value(override))}" if has_texts and key not in known else ""
            raise ConfigError(f"'{text}' lists several values: use alphapo sweep {text}{hint}")
        if key in known:
            choice = override.value()
            if choice not in known[key] and not (choice is None and key == "experiment"):
                many = key == "objective"
                listed = "`alphapo objectives` lists them" if many else f"choices: {', '.join(known[key])}"
                raise ConfigError(
                    f"{key}={shown(choice)}: no such {key}{suggestion(key, str(choice), known[key])} ({listed})"
                )
            groups.append(f"{key}={'null' if choice is None else choice}")
        elif "/" in key:
            raise ConfigError(f"'{text}': no such group '{key}'{nearest(key, known)} (groups: {', '.join(known)})")
        else:
            values[key] = override.value()
            typed[key] = _text_of(override)
    return Line(tuple(groups), values, typed)


def read_line(texts: Iterable[str], sources: Sources) -> Line:
    """Parse and split overrides; raises ConfigError as `parse` and `split` do."""
    return split(parse(texts), sources)


def shown(value: Any) -> str:
    """A value as it would be typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

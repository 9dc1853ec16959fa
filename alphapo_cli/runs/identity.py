"""The identity of a run: the settings that decide its results and differ from their defaults.

A key at its default is no part of the identity, so a key which a later version adds does not rename existing runs.
config.yaml holds every setting as it was: comparing those finds defaults that changed since, and
`format_version.NUMERICS` counts changes of results that no setting shows.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from alphapo_cli.config import schema
from alphapo_cli.config.compose import to_dict, to_yaml
from alphapo_cli.config.keys import leaves
from alphapo_cli.config.objective_parts import OPTIONAL, PARTS, declared
from alphapo_cli.config.overrides import shown, typed
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.format_version import NUMERICS, numerics_of
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.strict_json import parsed_object, read_file

# Settings of where a run is, how often it is saved and how it is tracked, not of what it computes.
NOT_IDENTITY = ("run.", "tracking.", "data.workers", "trainer.save_", "trainer.accept_lost_updates")
# Keys removed from the schema -> their last default. A removed key that is not listed counts as a difference.
RETIRED: dict[str, Any] = {}

# PyYAML's C loader if built: ten times as fast, and a directory may have thousands of these files.
_LARGEST = 64 << 20  # bytes of a config.yaml that is read
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ABSENT = object()
_UNREAD = ("model.source",)  # beside a model.path, whatever it was in earlier versions
_NAME = re.compile(r"objective\.(\w+\.)?name")  # set by choosing a config group


def settings(cfg: Any) -> dict[str, Any]:
    """Every setting that decides a run's results, as dotted keys, those at their defaults included."""
    return {k: v for k, v in leaves(to_dict(cfg)).items() if not k.startswith(NOT_IDENTITY)}


def identity(cfg: Any) -> dict[str, Any]:
    """The settings that decide a run's results and differ from their defaults, as dotted keys."""
    return chosen(settings(cfg))


def chosen(every: Mapping[str, Any]) -> dict[str, Any]:
    """Select those of `every` setting that differ from their defaults.

    A key's default is the schema's; that of an objective part's parameter is in the shipped YAML of the part. The name
    of a part that every objective must choose has no default.

    Returns:
        Dotted keys and values.
    """
    defaults = _defaults(every)
    unread = _UNREAD if every.get("model.path") is not None else ()
    return {k: v for k, v in every.items() if defaults.get(k, _ABSENT) != v and k not in unread}


def _defaults(every: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, with the parameters of the objective parts that `every` chooses."""
    found = {**RETIRED, **_schema_defaults(schema.TrainConfig)}
    for kind in PARTS:
        name = every.get(f"objective.{kind}.name", OPTIONAL.get(kind))
        for key, value in declared(kind, str(name)).items():
            if key != "name":
                found[f"objective.{kind}.{key}"] = value
    return found


@functools.cache
def _schema_defaults(made_by: type[Any]) -> dict[str, Any]:
    optional = {f"objective.{kind}.name": name for kind, name in OPTIONAL.items()}
    return {**leaves(to_dict(made_by())), **optional}


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two sets of settings; a key that only one of them has is at its default in the other.

    Returns:
        Keys that differ -> (old, new); "absent" stands for the value of a key that has no default.
    """
    was, now = chosen(old), chosen(new)
    keys = sorted(k for k in was.keys() | now.keys() if was.get(k, _ABSENT) != now.get(k, _ABSENT))
    if not keys:
        return {}
    before, after = _defaults(old), _defaults(new)
    return {k: (old.get(k, before.get(k, "absent")), new.get(k, after.get(k, "absent"))) for k in keys}


def describe(differences: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    """Describe at most `most` differences, as `objective.beta: 3.0 there, 2.5 here; ...`."""
    texts = [f"{key}: {_value_text(old)} there, {_value_text(new)} here" for key, (old, new) in differences.items()]
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def to_type(differences: Mapping[str, tuple[Any, Any]], most: int = 6) -> str | None:
    """Overrides that give the new configuration the old values; None if a few overrides cannot."""
    if len(differences) > most or any(new == "absent" or _NAME.fullmatch(k) for k, (_, new) in differences.items()):
        return None
    return " ".join(typed(key, old) for key, (old, _) in differences.items())


def _value_text(value: Any) -> str:
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else shown(value)


def run_name(cfg: Any) -> str:
    """`run.name`, or <objective>-<hash8 of the identity>."""
    return cfg.run.name or f"{cfg.objective.name}-{digest(identity(cfg))[:8]}"


def inputs_key(cfg: schema.TrainConfig) -> str:
    """Hash of the settings that a run's model and data depend on: runs with the same one can share both in memory."""
    seed = cfg.seed if cfg.model.source == "from_scratch" else 0
    return digest([asdict(cfg.model), asdict(cfg.data), cfg.probe.pairs, seed])


def find_run(cfg: Any, argv: Sequence[str] = ()) -> Path:
    """Find the directory of a run.

    Earlier versions hashed other settings into the name, so if the directory of that name does not hold the run, its
    siblings of the same objective are compared by their settings.

    Args:
        cfg: the run's configuration.
        argv: the command line.

    Returns:
        The directory of `run_name` if it holds the run or `run.name` is set; else one that holds it; else one that the
        same command line made under older numerics (`RunDirectory.check` reports the differences); else the first.
    """
    place = Path(cfg.run.dir).expanduser() / run_name(cfg)
    asked = settings(cfg)
    if cfg.run.name or _has_settings(place, asked):
        return place
    shape = re.compile(re.escape(cfg.objective.name) + "-[0-9a-f]{8}")
    beside = [place.parent / n for n in names_in(place.parent) if shape.fullmatch(n) and n != place.name]
    text = _lines(to_yaml(cfg)) if beside else {}
    same = (other for other in beside if _may_have(other / "config.yaml", text) and _has_settings(other, asked))
    earlier = (other for other in beside if not place.exists() and _is_earlier(other, argv))
    return next(itertools.chain(same, earlier), place)


def _is_earlier(place: Path, argv: Sequence[str]) -> bool:
    """Whether the same command line made the run at `place` under older numerics."""
    try:
        content = read_file(place / "manifest.json")
    except OSError:
        return False
    words = _arguments(argv)
    # A file of the user's may have changed, and the same words mean another run now.
    if not words or any(word.startswith("--config") for word in words):
        return False
    if json.dumps(words[-1]).encode() not in content:  # reading thousands as JSON takes longer
        return False
    manifest = parsed_object(content) or {}
    command = manifest.get("command")
    return (
        isinstance(command, list) and _arguments(command) == _arguments(argv) and numerics_of(manifest) < max(NUMERICS)
    )


def _arguments(argv: Sequence[str]) -> list[str]:
    """The arguments of a command line that decide a run's results."""
    words = iter(argv[1:])
    found = []
    for text in words:
        if text == "--json":
            next(words, None)  # the file of the result
        elif not text.startswith(("--replace", "--json=", *NOT_IDENTITY)):
            found.append(text)
    return found


def _has_settings(place: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the run directory at `place` has the settings `asked`."""
    stored = stored_settings(place / "config.yaml")
    return bool(stored) and not differing(stored, asked)


def names_in(folder: Path) -> list[str]:
    """Sorted names of the entries of a directory; none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _may_have(file: Path, asked: Mapping[str, str]) -> bool:
    """Whether a config.yaml may have the settings whose `_lines` are `asked`; ten times as fast as parsing the YAML."""
    try:
        stored = _lines(read_file(file, _LARGEST).decode("utf-8"))
    except (OSError, ValueError):
        return False
    return all(
        asked.get(k, value) == value for k, value in stored.items() if not k.startswith((*NOT_IDENTITY, *_UNREAD))
    )


def _lines(text: str) -> dict[str, str]:
    """Dotted keys of a config.yaml and the unparsed text of their values."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        bare = name.lstrip(" ")
        if colon and not bare.startswith("-"):
            path[(len(name) - len(bare)) // 2 :] = [bare]
            found[".".join(path)] = value
    return found


def stored_settings(file: Path) -> dict[str, Any]:
    """Read `settings` of a run from its config.yaml; empty if it cannot be read."""
    try:
        return read_settings(file)
    except (OSError, UsageError):
        return {}


def read_settings(file: Path) -> dict[str, Any]:
    """Read `settings` of a run from its config.yaml.

    Returns:
        Every setting that decides the run's results, as dotted keys.

    Raises:
        OSError: the file cannot be read.
        UsageError: the file is not a YAML mapping.
    """
    try:
        # Group by group: runs of one study differ in one or two, and reading the others again takes most of the time.
        text = read_file(file, _LARGEST).decode("utf-8")
        groups = [_group(part) for part in re.split(r"^(?=\S)", text, flags=re.M)]
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{file} is damaged ({' '.join(str(error).split())}); put it back from a copy") from error
    return {k: v for group in groups for k, v in group if not k.startswith(NOT_IDENTITY)}


@functools.lru_cache(maxsize=1024)
def _group(text: str) -> tuple[tuple[str, Any], ...]:
    """Dotted keys and values of one top-level key of a config.yaml."""
    loaded = yaml.load(text, Loader=_LOADER)
    if loaded is not None and not (isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)):
        raise yaml.YAMLError(
            f"not a mapping of names: {text[:40]!r}"
        )  # a torn file counts as damaged, not as fewer settings
    _refuse_repeated(loaded, set())
    return tuple(leaves(loaded).items()) if loaded else ()


def _refuse_repeated(value: Any, seen: set[int]) -> None:
    """Refuse (YAMLError) anchors, which no file of ours has: a few lines of them stand for more than memory holds."""
    if isinstance(value, dict | list) and value:
        if id(value) in seen:
            raise yaml.YAMLError("has anchors")
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_repeated(item, seen)

"""What makes a run itself: the settings that decide its numbers and differ from their defaults.

A key at its default is no part of it, so that a key which a later version adds changes the name of nothing that is
there. config.yaml holds every setting as it was: a default that changed since is found by comparing those, and what
changed without any setting is counted by `NUMERICS`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alphapo_cli.config import schema
from alphapo_cli.config.compose import leaves, to_dict, to_yaml
from alphapo_cli.config.objective_parts import OPTIONAL, PARTS, declared
from alphapo_cli.config.overrides import shown
from alphapo_cli.errors import UsageError
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.strict_json import parsed_object

# Settings that say where, how often saved and how watched a run is, not what it computes.
NOT_IDENTITY = ("run.", "tracking.", "data.workers", "trainer.save_")
# Keys that the schema has no more -> the default that they had. Without a line here, one in a config.yaml is a difference.
RETIRED: dict[str, Any] = {}

# What the files of a run mean; raised when one of them is read differently. 1: no number in manifest.json; 2: manifest.json
# has `format` and `numerics`.
RUN_FORMAT = 2
OLDEST_FORMAT = 1  # the oldest that is read as what it is

# What the numbers of a run mean, in manifest.json; a line is added when the same configuration gives other results (more
# than round-off), be it by a default, by what a file of conf/ chooses, or by the code. Each says what changed with it.
NUMERICS = {
    1: "the first version; no number in manifest.json",
    2: "a margin within rounding counts as a tie, in every metric and in every branch of a loss",
}

# In C where PyYAML has it: ten times as fast, and a directory may have thousands of these files.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ABSENT = object()
_NAME = re.compile(r"objective\.(\w+\.)?name")  # chosen by group


def settings(cfg: Any) -> dict[str, Any]:
    """Every setting that decides a run's numbers, as dotted keys, those at their defaults included."""
    return {k: v for k, v in leaves(to_dict(cfg)).items() if not k.startswith(NOT_IDENTITY)}


def identity(cfg: Any) -> dict[str, Any]:
    """The settings that decide a run's numbers and differ from their defaults, as dotted keys."""
    return chosen(settings(cfg))


def chosen(every: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `every` setting that differ from their defaults.

    The default of a key is the schema's; of a part's parameter, what the shipped YAML of that part declares. The name
    of a part that every objective must choose has none.
    """
    defaults = _defaults(every)
    return {k: v for k, v in every.items() if defaults.get(k, _ABSENT) != v}


def _defaults(every: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, given which parts `every` chooses."""
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
    """Settings that differ, as key -> (old, new). One that only one side has stands at its default on the other.

    Where there is no such key at all any more, its value is given as `absent`.
    """
    was, now = chosen(old), chosen(new)
    keys = sorted(k for k in was.keys() | now.keys() if was.get(k, _ABSENT) != now.get(k, _ABSENT))
    if not keys:
        return {}
    before, after = _defaults(old), _defaults(new)
    return {k: (old.get(k, before.get(k, "absent")), new.get(k, after.get(k, "absent"))) for k in keys}


def in_words(differences: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    """`objective.beta: 3.0 there, 2.5 here; ...`"""
    texts = [f"{key}: {_shown(old)} there, {_shown(new)} here" for key, (old, new) in differences.items()]
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def to_type(differences: Mapping[str, tuple[Any, Any]], most: int = 6) -> str | None:
    """What to add to the new line so that it means what is there; None where that is not a matter of a few values."""
    if len(differences) > most or any(new == "absent" or _NAME.fullmatch(k) for k, (_, new) in differences.items()):
        return None
    return " ".join(f"{key}={_shown(old)}" for key, (old, _) in differences.items())


def _shown(value: Any) -> str:
    return f"[{','.join(map(shown, value))}]" if isinstance(value, list) else shown(value)


def run_name(cfg: Any) -> str:
    """`run.name`, or <objective>-<hash8 of the identity>."""
    return cfg.run.name or f"{cfg.objective.name}-{digest(identity(cfg))[:8]}"


def find_run(cfg: Any, argv: Sequence[str] = ()) -> Path:
    """The directory of a run: that of its name, or one that an earlier version named otherwise and that holds it.

    Where neither is there, it is the one that the same line made under older numerics, whose settings `RunDirectory.check`
    then names: what a file of conf/ chooses is a value, and another one another name.

    Others than the name's own are looked at only where that holds no such run, which is when training is about to begin.
    Their names are hashes, too, but of what, only the version that made them knew.

    Args:
        cfg: the run's configuration.
        argv: the line as typed.
    """
    place = Path(cfg.run.dir).expanduser() / run_name(cfg)
    asked = settings(cfg)
    if cfg.run.name or _holds(place, asked):
        return place
    shape = re.compile(re.escape(cfg.objective.name) + "-[0-9a-f]{8}")
    beside = [place.parent / n for n in names_in(place.parent) if shape.fullmatch(n) and n != place.name]
    text = _lines(to_yaml(cfg)) if beside else {}
    same = (other for other in beside if _may_be(other / "config.yaml", text) and _holds(other, asked))
    earlier = (other for other in beside if not place.exists() and _is_earlier(other, argv))
    return next(itertools.chain(same, earlier), place)


def _is_earlier(place: Path, argv: Sequence[str]) -> bool:
    """Whether the same line made the run at `place` under older numerics."""
    try:
        content = (place / "manifest.json").read_bytes()
    except OSError:
        return False
    if not argv or json.dumps(_said(argv)[-1]).encode() not in content:  # reading thousands as JSON takes longer
        return False
    manifest = parsed_object(content) or {}
    command = manifest.get("command")
    return isinstance(command, list) and _said(command) == _said(argv) and numerics_of(manifest) < max(NUMERICS)


def _said(argv: Sequence[str]) -> list[str]:
    """A line without the program's name and what decides no numbers of a run."""
    words = iter(argv[1:])
    found = []
    for text in words:
        if text == "--json":
            next(words, None)  # where the result goes
        elif not text.startswith(("--replace", "--json=", *NOT_IDENTITY)):
            found.append(text)
    return found


def _holds(place: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the run directory at `place` has the settings `asked`."""
    stored = stored_settings(place / "config.yaml")
    return bool(stored) and not differing(stored, asked)


def names_in(folder: Path) -> list[str]:
    """What is in a directory, in order; nothing where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _may_be(file: Path, asked: Mapping[str, str]) -> bool:
    """Whether a config.yaml may mean what has the lines `asked`: a tenth of the time that reading it as YAML takes."""
    try:
        stored = _lines(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(asked.get(k, value) == value for k, value in stored.items() if not k.startswith(NOT_IDENTITY))


def _lines(text: str) -> dict[str, str]:
    """Dotted keys and what stands behind their colons, as it is written."""
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
    """`settings` of a run from its config.yaml; empty where it cannot be read."""
    try:
        return read_settings(file)
    except (OSError, UsageError):
        return {}


def read_settings(file: Path) -> dict[str, Any]:
    """`settings` of a run from its config.yaml.

    Raises:
        OSError: it cannot be read. UsageError: it is damaged.
    """
    try:
        # Group by group: runs of one study differ in one or two, and reading the others again takes most of the time.
        groups = [_group(text) for text in re.split(r"^(?=\S)", file.read_text(encoding="utf-8"), flags=re.M)]
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{file} is damaged ({' '.join(str(error).split())}); put it back from a copy") from error
    return {k: v for group in groups for k, v in group if not k.startswith(NOT_IDENTITY)}


@functools.lru_cache(maxsize=1024)
def _group(text: str) -> tuple[tuple[str, Any], ...]:
    """Dotted keys and values of one top-level key of a config.yaml."""
    loaded = yaml.load(text, Loader=_LOADER)
    if loaded is not None and not isinstance(loaded, dict):
        raise yaml.YAMLError(f"not a mapping: {text[:40]!r}")  # a torn file says nothing, rather than a part of it
    return tuple(leaves(loaded).items()) if loaded else ()


def check_format(
    path: Path, manifest: Mapping[str, Any], *, replace: bool = False, fix: str = "choose another run.name"
) -> None:
    """Refuse a run directory whose files this version does not understand.

    Args:
        path: the run directory, for the message.
        manifest: its manifest.json.
        replace: it is to be trained anew. That removes the files of an older format, but not those of a newer one, of
            which nothing is known here.
        fix: what else to do, for the message.

    Raises:
        UsageError: its format is older or newer than what is read here.
    """
    number = manifest.get("format", 1)
    reads = f"reads {OLDEST_FORMAT} to {RUN_FORMAT}" if OLDEST_FORMAT < RUN_FORMAT else f"reads {RUN_FORMAT}"
    if not isinstance(number, int) or number > RUN_FORMAT:
        raise UsageError(
            f"{path} was made by a newer alphapo (run format {number}, this one {reads}): update alphapo, or {fix}"
        )
    if number < OLDEST_FORMAT and not replace:
        made = (manifest.get("versions") or {}).get("alphapo")
        raise UsageError(
            f"{path} was made by an older alphapo (run format {number}, this one {reads}): read it with version "
            f"{made or 'that made it'}, train it anew with --replace, or {fix}"
        )


def numerics_of(manifest: Mapping[str, Any]) -> int:
    """The number under which a run was made, 1 where its manifest has none."""
    number = manifest.get("numerics", 1)
    return number if isinstance(number, int) else 1


def numerics_changes(number: int) -> str | None:
    """What makes results of now other than those under `number`, in words; None where nothing does."""
    now = max(NUMERICS)
    if number > now:
        return f"numerics {number} (by a newer alphapo: this one has {now})"
    since = [text for n, text in NUMERICS.items() if n > number]
    return f"numerics {number} (now {now}: {'; '.join(since)})" if since else None

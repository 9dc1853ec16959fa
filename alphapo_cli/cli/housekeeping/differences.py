"""What differs between two directories of the same kind: configuration, data, versions, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.cli.housekeeping.entries import (
    EVALUATION,
    GENERATION,
    MALFORMED,
    MODEL,
    RUN,
    SWEEP,
    cells,
    describe,
    kind_of,
)
from alphapo_cli.config.keys import leaves
from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.runs import identity
from alphapo_cli.runs.state import RunState
from alphapo_cli.runs.title import title
from alphapo_cli.storage import checksums
from alphapo_cli.storage.hashing import content
from alphapo_cli.storage.strict_json import read_object
from alphapo_cli.sweep.record import read

SECTIONS = ("configuration", "data", "versions", "results")
ABSENT = "absent"
Facts = Mapping[str, Mapping[str, Any]]  # section -> key -> value
Differences = dict[str, dict[str, tuple[Any, Any]]]  # section -> key -> (value of the first, of the second)
_DETAIL = ("/p10", "/p50", "/p90", "_sum")  # endings of metrics beside the mean
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def compare(a: Path, b: Path) -> tuple[str, Differences, int]:
    """Compare two directories.

    Args:
        a: the first.
        b: the second.

    Returns:
        Their kind; by section the keys that differ, with both values; and how many facts are the same.

    Raises:
        UsageError: one of them is no directory that alphapo knows, or they are of different kinds.
    """
    kinds = [_kind(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"{a} is a {kinds[0]} and {b} a {kinds[1]}; name two of the same kind")
    kind = kinds[0]
    first, second = facts(a, kind), facts(b, kind)
    found: Differences = {}
    same = 0
    for section in SECTIONS:
        left, right = first.get(section, {}), second.get(section, {})
        if kind == RUN and section == "configuration":  # a key that one version lacks is at its default there
            differing = identity.differing(left, right)
            same += len(left.keys() | right.keys()) - len(differing)
        else:
            keys = sorted(left.keys() | right.keys())
            differing = {k: (left.get(k, ABSENT), right.get(k, ABSENT)) for k in keys if left.get(k) != right.get(k)}
            same += len(keys) - len(differing)
        if differing:
            found[section] = differing
    return kind, found, same


def words(path: Path, kind: str) -> str:
    """What a directory is and what came out of it, since the name of many is a hash.

    Args:
        path: the directory.
        kind: as `kind_of` has it, but for a model.

    Returns:
        Settings of a run, state, and outcome with interval and n.
    """
    entry = describe(path, kind)
    settings = identity.stored_settings(path / "config.yaml") if kind == RUN else {}
    return "; ".join(part for part in (title(settings) if settings else "", entry.state, entry.outcome) if part)


def _kind(path: Path) -> str:
    if not path.is_dir():
        raise UsageError(f"{path}: no such directory; name two runs, sweeps, generations, evaluations or models")
    kind = kind_of(path)
    if kind is None:
        raise UsageError(
            f"{path}: no run, sweep, generation, evaluation or model; `alphapo ls DIR` lists what is in a folder"
        )
    return kind


def facts(path: Path, kind: str) -> Facts:
    """What is known of a directory, by section.

    Args:
        path: the directory.
        kind: as `kind_of` has it.

    Returns:
        The facts; metrics without their quantiles and sums.

    Raises:
        UsageError: a file holds other things than alphapo writes.
    """
    made: dict[str, Callable[[Path], Facts]] = {
        RUN: _run, SWEEP: _sweep, GENERATION: _keyed, EVALUATION: _keyed, MODEL: _model,
    }  # fmt: skip
    try:
        return made[kind](path)
    except MALFORMED as error:
        raise UsageError(f"{path}: its files hold other things than alphapo writes ({first_line(error)})") from error


def _run(path: Path) -> Facts:
    run = RunState(path)
    manifest, ended = run.read_manifest(), run.summary()
    summary = ended or {}
    results = {"state": run.state_of(ended), "step": summary.get("step")}
    results |= _means(summary.get("metrics") or {}) | _means(run.outcome().get("metrics") or {})
    data = leaves(manifest.get("data") or {}) | leaves(manifest.get("files") or {}, "file ")
    return {
        "configuration": identity.stored_settings(run.config),
        "data": data,
        "versions": _versions(manifest),
        "results": results | leaves({k: v for k, v in (summary.get("cost") or {}).items() if k == "seconds"}, "cost "),
    }


def _versions(manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = ("git_commit", "numerics", "format", "threads")
    found = {key: manifest[key] for key in known if key in manifest}
    return leaves(manifest.get("versions") or {}) | leaves(manifest.get("hardware") or {}, "hardware ") | found


def _means(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if not key.endswith(_DETAIL)}


def _sweep(path: Path) -> Facts:
    record = read(path)
    if record is None:
        raise UsageError(f"{path}/sweep.json cannot be read as a sweep's record; put it back from a copy")
    best = leaves((checksums.intact(read_object(path / "summary.json")) or {}).get("best") or {}, "best ")
    states = {overrides: RunState(place).state for place, overrides in cells(path)}
    return {
        "configuration": {**record.get("base", {}), "swept keys": record.get("keys", [])},
        "versions": {**record.get("versions", {}), "numerics": record.get("numerics")},
        "results": {**states, **best},
    }


def _keyed(path: Path) -> Facts:
    manifest = checksums.intact(read_object(path / "manifest.json")) or {}
    results = leaves((checksums.intact(read_object(path / "summary.json")) or {}).get("metrics") or {})
    judged = checksums.intact(read_object(path / "results.json")) or {}
    told = {k: v for k, v in judged.items() if k != "checksum"}  # of the file, and no result
    scalars = {k: v for k, v in told.items() if not isinstance(v, dict | list) or k == "win_rate_interval"}
    return {
        "configuration": leaves(manifest.get("identity") or {}),
        "versions": _versions(manifest),
        "results": results | scalars,
    }


def _model(path: Path) -> Facts:
    config = {name: read_object(path / name) or {} for name in ("config.json", "adapter_config.json")}
    weights = sorted(p.name for p in path.glob("*.safetensors"))
    return {
        "configuration": {k: v for of_file in config.values() for k, v in leaves(of_file).items()},
        "data": {name: content(path / name) for name in (*_FILES, *weights) if (path / name).is_file()},
    }

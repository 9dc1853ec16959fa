"""sweep.json, read without a configuration's schema: the cells of a sweep, and which of them a command line named.

Composing a grid takes longer than reading the state of all its cells. So sweep.json keeps the cells of every
command line that ran, under a hash of all that its meaning depends on; `--status` of the same line reads them there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alphapo_cli.config.shipped import shipped
from alphapo_cli.storage import checksums
from alphapo_cli.storage.hashing import digest, plan_key
from alphapo_cli.storage.strict_json import parsed_object, read_file

WIN_RATE = "glassbox/true_win_rate"
JUDGED = "eval/win_rate"
# In order of preference; the first that every complete cell has is the outcome of the sweep.
OUTCOMES = (JUDGED, WIN_RATE, "rewards/accuracies")
KEPT = 16  # command lines in sweep.json, the newest


def names_sweep(text: str) -> bool:
    """Whether the first argument names a sweep rather than a setting (a path may hold a `=`)."""
    return "=" not in text or (text.endswith((".yaml", ".yml")) and os.path.isfile(text))


@dataclass(frozen=True)
class Typed:
    """A command line of `alphapo sweep` as typed, without --out."""

    texts: tuple[str, ...]  # name and overrides
    config_dir: Path | None = None
    files: Mapping[str, Path | None] = field(default_factory=dict)  # --reference and its like
    config: Path | None = None

    @property
    def name(self) -> str:
        """The name of the sweep's directory, without its hash."""
        named = bool(self.texts) and names_sweep(self.texts[0])
        return Path(self.texts[0]).stem if named else "sweep"

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the cells of the line: its text, YAML files, and the program."""
        package = Path(__file__).resolve().parents[1]
        folders = {package, shipped("conf"), shipped("sweeps"), *([self.config_dir] if self.config_dir else [])}
        own = [Path(text) for text in self.texts[:1] if text.endswith((".yaml", ".yml"))]
        own += [self.config] if self.config else []
        files = {name: str(path) for name, path in {**self.files, "config": self.config}.items() if path is not None}
        stamps = [_file_stamps(folder) for folder in sorted(folders)] + [_size_and_mtime(path) for path in own]
        return digest([list(self.texts), str(self.config_dir), files, stamps])

    def record(self, cells: Mapping[str, Sequence[str]], plan: Sequence[Any] | None) -> dict[str, Any]:
        """The entry of sweep.json: overrides by cell, and a plan's `lines`."""
        listed = {k: list(v) for k, v in cells.items()}
        return {"key": self.key, "texts": list(self.texts), "cells": listed, "plan": plan}


@dataclass(frozen=True)
class RecordedCells:
    """The cells that sweep.json has of a command line."""

    path: Path  # the sweep's directory
    cells: Mapping[str, Sequence[str]]  # overrides by cell, in the grid's order
    key: str | None  # of the line's evaluation plan; None without one


def read(path: Path) -> dict[str, Any] | None:
    """Read a directory's sweep.json; None if there is none that can be read. Damaged `lines` are left out."""
    try:
        loaded = checksums.intact(parsed_object(read_file(path / "sweep.json")))
    except OSError:
        return None
    if loaded is None:
        return None
    cells = loaded.get("cells", [])
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        return None
    lines, outcome = loaded.get("lines"), loaded.get("outcome")
    return {
        **loaded,
        "lines": [line for line in lines if _is_line(line)] if isinstance(lines, list) else [],
        "outcome": outcome
        if isinstance(outcome, dict) and "key" in outcome and _is_plan(outcome.get("lines"))
        else None,
    }


def _is_cell(found: Any) -> bool:
    return isinstance(found, dict) and (
        _is_name(found.get("id")) and isinstance(found.get("point"), dict) and _are_texts(found.get("overrides"))
    )


def _is_name(found: Any) -> bool:
    """Whether a cell's id names a directory in cells/, and none elsewhere that whoever wrote the file chose."""
    return isinstance(found, str) and found not in ("", ".", "..") and not {"/", "\0"} & set(found)


def _is_line(found: Any) -> bool:
    if not (isinstance(found, dict) and isinstance(found.get("key"), str) and isinstance(found.get("cells"), dict)):
        return False
    plan = found.get("plan", "")
    return (
        all(map(_is_name, found["cells"]))
        and all(map(_are_texts, found["cells"].values()))
        and (plan is None or _is_plan(plan))
    )


def _is_plan(found: Any) -> bool:
    """Whether these are `Plan.lines`."""
    return isinstance(found, list) and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[1], dict) for p in found
    )


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


def recorded(typed: Typed, out: Path | None) -> RecordedCells | None:
    """The recorded cells of a command line; None if the grid must be composed, which also reports its errors."""
    try:
        if any(path is not None and not path.exists() for path in typed.files.values()):
            return None
        for place in _candidates(typed, out):
            found = read(place) or {}
            if out is None and place.name != f"{found.get('name')}-{found.get('hash')}":
                continue
            for line in found.get("lines", []):
                if line["key"] == typed.key:
                    plan = line["plan"]
                    return RecordedCells(
                        place, line["cells"], None if plan is None else plan_key(plan, typed.files.values())
                    )
    except OSError:
        return None
    return None


def _candidates(typed: Typed, out: Path | None) -> Iterator[Path]:
    """Directories where the line's sweep may be; a run.dir that YAML sets is not searched."""
    if out is not None:
        yield out.expanduser()
        return
    given = [text.partition("=")[2] for text in typed.texts if text.startswith("run.dir=")]
    root = Path(given[-1] if given else "runs").expanduser()
    yield from (file.parent for file in root.glob(f"{typed.name}-*/sweep.json"))


def _file_stamps(folder: Path) -> list[Any]:
    """Name, size and modification time of every file in a folder."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        within = os.path.relpath(place, folder)
        found += [[within, name, *_size_and_mtime(Path(place, name))] for name in sorted(files)]
    return found


def _size_and_mtime(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]

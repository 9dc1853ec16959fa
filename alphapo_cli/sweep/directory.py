"""The directory of a sweep. The run directories are the state; sweep.json says which cells there are.

sweep.json      name, hash, numerics (as it was begun), base settings, swept keys, resolved cells, and which of them each typed
                line named
cells/<id>/     run directories
summary.json    {"name", "hash", "cells": [...], "best": ...}, made from the run directories
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.runs import identity
from alphapo_cli.runs.directory import RunDirectory, version_changes, versions
from alphapo_cli.runs.state import NOT_EVALUATED, OUTCOME, OVER
from alphapo_cli.stages.plan import Plan, differing_lines
from alphapo_cli.storage.atomic import check_folder, usable, write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.sweep.grid import Cell, Grid
from alphapo_cli.sweep.record import KEPT, Typed, read


@dataclass(frozen=True)
class SweepDirectory:
    """Paths and records of one sweep."""

    path: Path

    @property
    def file(self) -> Path:
        return self.path / "sweep.json"

    def cell(self, cell_id: str) -> RunDirectory:
        return RunDirectory(self.path / "cells" / cell_id)

    def record(self) -> dict[str, Any] | None:
        """sweep.json, or None where there is none."""
        return read(self.path)

    @classmethod
    def of(cls, grid: Grid, out: Path | None, typed: Typed | None = None) -> SweepDirectory:
        """Where a grid's sweep is: at `out`, or in run.dir under its own name or under that of an earlier version.

        Where none is there, it is the one that the same line made under older numerics, and `check` names what differs.
        """
        if out is not None:
            return cls(out.expanduser())
        place = Path(grid.cells[0].cfg.run.dir).expanduser() / f"{grid.name}-{grid.hash}"
        if _is_of(place, grid):
            return cls(place)
        shape = re.compile(re.escape(grid.name) + "-[0-9a-f]{8}")
        beside = [place.parent / name for name in identity.names_in(place.parent) if shape.fullmatch(name)]
        same = (other for other in beside if _is_of(other, grid))
        earlier = (other for other in beside if typed and not place.exists() and _is_earlier(other, typed))
        return cls(next(itertools.chain(same, earlier), place))

    def check(self, grid: Grid, *, looking: bool = False) -> Grid:
        """May this grid go on here, or be looked at? Returns it with the ids that its cells have here.

        Raises:
            UsageError: the directory holds another sweep, or something else; a cell was trained under other settings than
                the grid's, because a default or a file of conf/ changed; it cannot be written (where not `looking`).
        """
        if not looking:
            check_folder(self.path, "choose another --out or run.dir")
        if not self.path.is_dir():
            return grid
        # Killed while its input was checked, a sweep has left no more than this.
        if all(p.name == "logs" or p.name.startswith((".sweep.json.", ".alphapo-")) for p in self.path.iterdir()):
            return grid
        old = self.record()
        if old is None and self.file.exists():
            raise UsageError(f"{self.file}: cannot be read as a sweep's record; put it back, or choose another --out")
        if old is None:
            raise UsageError(f"{self.path} exists and is not a sweep's directory; choose another --out")
        differences, keys = _differences(old, grid), _swept_by_one(old, grid)
        if differences or keys:
            said = [identity.in_words(differences)] if differences else []
            typed = None if keys else identity.to_type(differences)
            raise UsageError(
                f"{self.path} holds another sweep (differs in: {'; '.join([*said, *keys])}); "
                f"{f'type {typed} to mean that one, or ' if typed else ''}choose another --out"
            )
        with usable(self.path, "choose another --out"):
            return replace(grid, cells=tuple(self._as_here(grid, old)))

    def _as_here(self, grid: Grid, record: Mapping[str, Any]) -> Iterator[Cell]:
        """The grid's cells with the ids that they have here: an earlier version may have named a point's cell otherwise."""
        at: dict[str, list[str]] = {}
        for made in record["cells"]:
            at.setdefault(digest(made["point"]), []).append(made["id"])
        for cell in grid.cells:
            ids = at.get(digest(dict(cell.point)), [])
            if cell.id not in ids and ids:
                own = next((i for i in ids if not self._differences_of(i, cell)), ids[0])
                cell = replace(cell, id=own)
            differences = self._differences_of(cell.id, cell)
            if differences:
                raise UsageError(
                    f"{self.cell(cell.id).path} holds the cell {' '.join(cell.overrides)} with other settings (differs in: "
                    f"{identity.in_words(differences)}); remove it to train the cell anew, or choose another --out"
                )
            yield cell

    def _differences_of(self, cell_id: str, cell: Cell) -> dict[str, tuple[Any, Any]]:
        """Settings in which what is at an id differs from a cell; none where nothing is there yet."""
        run = self.cell(cell_id)
        if not run.config.is_file():
            return {}
        identity.check_format(run.path, run.read_manifest(), fix="choose another --out")
        return run.differing(cell.cfg)

    def version_note(self) -> str | None:
        """One line where the cells so far were made by other versions."""
        changes = version_changes((self.record() or {}).get("versions", {}), versions())
        return f"note: this sweep was begun under other versions ({changes})" if changes else None

    def plan_note(self, plan: Plan) -> str | None:
        """One line where the cells so far were evaluated under other settings."""
        old = (self.record() or {}).get("outcome")
        if not old or old["key"] == plan.key:
            return None
        keys = differing_lines(old["lines"], plan.lines) or ["the content of a file"]
        return (
            f"note: this sweep was evaluated under other settings (differs in: {', '.join(keys)}); "
            "its cells are evaluated anew, earlier evaluations stay beside"
        )

    def write(self, grid: Grid, typed: Typed | None = None, plan: Plan | None = None) -> None:
        """Add this grid's cells to sweep.json, and the line that named them; cells of earlier lines stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        old = self.record() or {}
        cells = {c["id"]: c for c in old.get("cells", [])}
        lines = {line["key"]: line for line in old.get("lines", [])}
        if typed is not None:
            lines.pop(typed.key, None)
            overrides = {cell.id: cell.overrides for cell in grid.cells}
            lines[typed.key] = typed.record(overrides, None if plan is None else plan.lines)
        outcome = old.get("outcome") if plan is None else {"key": plan.key, "lines": plan.lines}
        for cell in grid.cells:
            cells[cell.id] = {"id": cell.id, "point": dict(cell.point), "overrides": list(cell.overrides)}
        write_json(self.file, {
            "name": grid.name,
            "hash": self.hash(grid),
            "numerics": identity.numerics_of(old) if old else max(identity.NUMERICS),  # as it was begun
            "description": grid.description,
            "base": dict(grid.base),
            "keys": list(grid.keys),
            "versions": versions(),
            "cells": sorted(cells.values(), key=lambda c: [_order(v) for v in c["point"].values()]),
            "outcome": outcome,
            "lines": list(lines.values())[-KEPT:],
        })  # fmt: skip

    def hash(self, grid: Grid) -> str:
        """What this directory was named by: an earlier version's hash of the same grid stays."""
        return str((self.record() or {}).get("hash") or grid.hash)

    def cells(self) -> list[dict[str, Any]]:
        """Every cell with its state and results, in the order of the grid.

        Outcomes of other settings of generation and judge than the last line's are left out: they are not comparable.
        """
        found = []
        record = self.record() or {}
        asked = (record.get("outcome") or {}).get("key")
        for cell in record.get("cells", []):
            run = self.cell(cell["id"])
            summary = run.summary() or {}
            state, judged = run.state_of(summary), run.outcome()
            theirs = asked is None or judged.get("key") == asked
            missing = judged.get("reason") or NOT_EVALUATED if state in OVER and not theirs else None
            found.append(
                {
                    "id": cell["id"],
                    "point": cell["point"],
                    "overrides": cell["overrides"],
                    "state": state,
                    "reason": summary.get("reason") or missing,
                    "step": summary.get("step", 0),
                    "metrics": {**(summary.get("metrics") or {}), **(judged.get("metrics", {}) if theirs else {})},
                    "cost": summary.get("cost", {}),
                }
            )
        return found

    def ended(self) -> int:
        """When the newest of its cells ended, in training or in evaluation: its file's time of change in ns; 0 before."""
        runs = [self.cell(c["id"]) for c in (self.record() or {}).get("cells", [])]
        files = [file for run in runs for file in (run.summary_file, run.path / OUTCOME)]
        return max((f.stat().st_mtime_ns for f in files if f.is_file()), default=0)

    def write_summary(self, best: Mapping[str, Any] | None) -> dict[str, Any]:
        """summary.json from what the run directories say now."""
        record = self.record() or {}
        keys = ("id", "overrides", "state", "reason", "metrics", "cost")
        summary = {
            "name": record.get("name"),
            "hash": record.get("hash"),
            "cells": [{k: cell[k] for k in keys} for cell in self.cells()],
            "best": None if best is None else dict(best),
        }
        write_json(self.path / "summary.json", summary)
        return summary


def _is_of(place: Path, grid: Grid) -> bool:
    """Whether the sweep recorded at `place` is the grid's."""
    old = read(place)
    return old is not None and not _differences(old, grid) and not _swept_by_one(old, grid)


def _is_earlier(place: Path, typed: Typed) -> bool:
    """Whether the same line began the sweep at `place` under older numerics."""
    old = read(place) or {}
    by_it = any(line.get("texts") == list(typed.texts) for line in old.get("lines", []))
    return by_it and identity.numerics_of(old) < max(identity.NUMERICS)


def _differences(old: Mapping[str, Any], grid: Grid) -> dict[str, tuple[Any, Any]]:
    """Settings outside the swept keys in which a recorded sweep and a grid differ."""
    base = old.get("base")
    return identity.differing(base if isinstance(base, dict) else {}, grid.base)


def _swept_by_one(old: Mapping[str, Any], grid: Grid) -> list[str]:
    return [f"swept {k}" for k in sorted(set(old.get("keys", [])) ^ set(grid.keys))]


def another(directory: Path, grid: Grid) -> str | None:
    """One line on the newest sweep of the same name that this grid does not belong to, if there is one."""
    siblings = [p for p in directory.parent.glob(f"{grid.name}-*") if (p / "sweep.json").is_file() and p != directory]
    if directory.exists() or not siblings:
        return None
    newest = max(siblings, key=lambda p: (p / "sweep.json").stat().st_mtime)
    old = SweepDirectory(newest).record() or {}
    keys = [*_differences(old, grid), *_swept_by_one(old, grid)] or ["sweep.json"]
    return f"another sweep than {newest.name} (differs in: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''})"


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))

"""The directory of a sweep. The run directories are the state; sweep.json says which cells there are.

sweep.json      name, hash, base settings, swept keys, resolved cells, and which of them each typed line named
cells/<id>/     run directories
summary.json    {"name", "hash", "cells": [...], "best": ...}, made from the run directories
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.runs.directory import RunDirectory, version_changes, versions
from alphapo_cli.runs.state import NOT_EVALUATED, OUTCOME, OVER
from alphapo_cli.stages.plan import Plan, differing_lines
from alphapo_cli.storage.atomic import check_folder, write_json
from alphapo_cli.sweep.grid import Grid
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

    def check(self, grid: Grid, *, looking: bool = False) -> None:
        """May this grid go on here, or be looked at?

        Raises:
            UsageError: the directory holds another sweep, or something else; it cannot be written (where not `looking`).
        """
        if not looking:
            check_folder(self.path, "choose another --out or run.dir")
        if not self.path.is_dir():
            return
        # Killed while its input was checked, a sweep has left no more than this.
        if all(p.name == "logs" or p.name.startswith((".sweep.json.", ".alphapo-")) for p in self.path.iterdir()):
            return
        old = self.record()
        if old is None and self.file.exists():
            raise UsageError(f"{self.file}: cannot be read as a sweep's record; put it back, or choose another --out")
        if old is None:
            raise UsageError(f"{self.path} exists and is not a sweep's directory; choose another --out")
        if old.get("hash") != grid.hash:
            raise UsageError(
                f"{self.path} holds another sweep (differs in: {', '.join(differing(old, grid))}); choose another --out"
            )

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
            "hash": grid.hash,
            "description": grid.description,
            "base": dict(grid.base),
            "keys": list(grid.keys),
            "versions": versions(),
            "cells": sorted(cells.values(), key=lambda c: [_order(v) for v in c["point"].values()]),
            "outcome": outcome,
            "lines": list(lines.values())[-KEPT:],
        })  # fmt: skip

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


def differing(old: Mapping[str, Any], grid: Grid) -> list[str]:
    """Keys in which a recorded sweep and a grid are not the same sweep."""
    base = old.get("base", {})
    missing = object()  # a key that only one of them has differs, also when its value is null
    keys = sorted(k for k in base.keys() | grid.base.keys() if base.get(k, missing) != grid.base.get(k, missing))
    swept = sorted(set(old.get("keys", [])) ^ set(grid.keys))
    return [*keys, *(f"swept {k}" for k in swept)] or ["sweep.json"]


def another(directory: Path, grid: Grid) -> str | None:
    """One line on the newest sweep of the same name that this grid does not belong to, if there is one."""
    siblings = [p for p in directory.parent.glob(f"{grid.name}-*") if (p / "sweep.json").is_file() and p != directory]
    if directory.exists() or not siblings:
        return None
    newest = max(siblings, key=lambda p: (p / "sweep.json").stat().st_mtime)
    keys = differing(SweepDirectory(newest).record() or {}, grid)
    return f"another sweep than {newest.name} (differs in: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''})"


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))

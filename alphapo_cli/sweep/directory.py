"""The directory of a sweep: sweep.json lists the cells, whose state is in their run directories.

sweep.json      name, hash, numerics (when it was started), base settings, swept keys, resolved cells, and which cells
                each command line named
cells/<id>/     run directories
summary.json    {"name", "hash", "cells": [...], "best": ..., "collapsed": [...], "verdict": ...}, made from the
                run directories
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphapo_cli.errors import UsageError
from alphapo_cli.runs import format_version, identity
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.provenance import version_changes, versions
from alphapo_cli.runs.state import NOT_EVALUATED, OUTCOME, OVER
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import check_folder, usable, write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.sweep.grid import Cell, Grid
from alphapo_cli.sweep.record import KEPT, Typed, read

if TYPE_CHECKING:
    from alphapo_cli.stages.plan import Plan


@dataclass(frozen=True)
class SweepDirectory:
    """Paths and records of one sweep."""

    path: Path

    @property
    def file(self) -> Path:
        """The record, sweep.json."""
        return self.path / "sweep.json"

    def cell(self, cell_id: str) -> RunDirectory:
        """Run directory of a cell."""
        return RunDirectory(self.path / "cells" / cell_id)

    def record(self) -> dict[str, Any] | None:
        """Read sweep.json; None if there is none that can be read."""
        return read(self.path)

    @classmethod
    def of(cls, grid: Grid, out: Path | None, typed: Typed | None = None) -> SweepDirectory:
        """Find the directory of a grid's sweep.

        Args:
            grid: all cells.
            out: the option --out, or None.
            typed: the command line; None if a sweep under older numerics is not to be found.

        Returns:
            The directory `out` if given; else <name>-<hash8> in run.dir if it holds the sweep; else one that an earlier
            version named otherwise; else one that the same command line made under older numerics (`check` reports
            the differences); else <name>-<hash8>, to be created.
        """
        if out is not None:
            return cls(out.expanduser())
        place = Path(grid.cells[0].cfg.run.dir).expanduser() / f"{grid.name}-{grid.hash}"
        if _is_same_sweep(place, grid):
            return cls(place)
        shape = re.compile(re.escape(grid.name) + "-[0-9a-f]{8}")
        beside = [place.parent / name for name in identity.names_in(place.parent) if shape.fullmatch(name)]
        same = (other for other in beside if _is_same_sweep(other, grid))
        earlier = (other for other in beside if typed and not place.exists() and _is_earlier(other, typed))
        return cls(next(itertools.chain(same, earlier), place))

    def check(self, grid: Grid, *, looking: bool = False) -> Grid:
        """Check that this directory holds nothing or the grid's sweep.

        Args:
            grid: all cells.
            looking: whether the sweep is only read, so that the directory need not be writable.

        Returns:
            The grid, with the ids that its cells have in this directory.

        Raises:
            UsageError: the directory holds another sweep or something else; a cell was trained under other settings
                than the grid's, because a default or a file of conf/ changed; or the directory cannot be written.
        """
        if not looking:
            check_folder(self.path, "choose another --out or run.dir")
        if not self.path.is_dir():
            return grid
        # All that a sweep leaves when it is killed while its input is checked.
        if all(p.name == "logs" or p.name.startswith((".sweep.json.", ".alphapo-")) for p in self.path.iterdir()):
            return grid
        old = self.record()
        if old is None and self.file.exists():
            raise UsageError(f"{self.file}: cannot be read as a sweep's record; put it back, or choose another --out")
        if old is None:
            raise UsageError(f"{self.path} exists and is not a sweep's directory; choose another --out")
        differences, keys = _differences(old, grid), _keys_swept_in_one(old, grid)
        if differences or keys:
            said = [identity.describe(differences)] if differences else []
            typed = None if keys else identity.to_type(differences)
            raise UsageError(
                f"{self.path} holds another sweep (differs in: {'; '.join([*said, *keys])}); "
                f"{f'type {typed} to mean that one, or ' if typed else ''}choose another --out"
            )
        with usable(self.path, "choose another --out"):
            return replace(grid, cells=tuple(self._with_recorded_ids(grid, old)))

    def _with_recorded_ids(self, grid: Grid, record: Mapping[str, Any]) -> Iterator[Cell]:
        """The grid's cells with their recorded ids: an earlier version may have hashed a point's cell to another id."""
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
                    f"{identity.describe(differences)}); remove it to train the cell anew, or choose another --out"
                )
            yield cell

    def _differences_of(self, cell_id: str, cell: Cell) -> dict[str, tuple[Any, Any]]:
        """Settings in which the run recorded under an id differs from `cell`; none if there is no run yet."""
        run = self.cell(cell_id)
        if not run.config.is_file():
            return {}
        format_version.check_format(run.path, run.read_manifest(), fix="choose another --out")
        damage = run.damage()
        if damage:
            raise UsageError(
                f"{run.path} says that it is over, but {checksums.described(damage)}; restore it from a copy, or remove the "
                "directory to train the cell anew"
            )
        return run.differing(cell.cfg)

    def version_note(self) -> str | None:
        """A line for the user if the sweep was started under other package versions, else None."""
        changes = version_changes((self.record() or {}).get("versions", {}), versions())
        return f"note: this sweep was begun under other versions ({changes})" if changes else None

    def plan_note(self, plan: Plan) -> str | None:
        """A line for the user if the cells so far were evaluated under other settings.

        Args:
            plan: settings of generation and judge.

        Returns:
            The line, or None.
        """
        old = (self.record() or {}).get("outcome")
        if not old or old["key"] == plan.key:
            return None
        keys = plan.changed(old["lines"]) or ["the content of a file"]
        return (
            f"note: this sweep was evaluated under other settings (differs in: {', '.join(keys)}); "
            "its cells are evaluated anew, earlier evaluations stay beside"
        )

    def write(self, grid: Grid, typed: Typed | None = None, plan: Plan | None = None) -> None:
        """Add the grid's cells to sweep.json, and the command line that named them; earlier cells stay."""
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
        write_json(self.file, checksums.sealed({
            "name": grid.name,
            "hash": self.hash(grid),
            "numerics": format_version.numerics_of(old) if old else max(format_version.NUMERICS),  # when it was started
            "description": grid.description,
            "base": dict(grid.base),
            "keys": list(grid.keys),
            "versions": versions(),
            "cells": sorted(cells.values(), key=lambda c: [_sort_key(v) for v in c["point"].values()]),
            "outcome": outcome,
            "lines": list(lines.values())[-KEPT:],
        }))  # fmt: skip

    def hash(self, grid: Grid) -> str:
        """The recorded hash, which an earlier version may have computed otherwise; else that of the grid."""
        return str((self.record() or {}).get("hash") or grid.hash)

    def cells(self) -> list[dict[str, Any]]:
        """Read every cell's state and results.

        Returns:
            Cells in the order of the grid, each with id, point, overrides, state, reason, step, metrics, cost,
            clipped, the share of logged steps whose gradient was clipped, and pairs, those of the probe (both None where
            that is not known).
            Metrics of evaluations under other settings than the last command line's are left out: they are not
            comparable.
        """
        found = []
        record = self.record() or {}
        asked = (record.get("outcome") or {}).get("key")
        for cell in record.get("cells", []):
            run = self.cell(cell["id"])
            ended = run.summary()
            state, judged, summary = run.state_of(ended), run.outcome(), ended or {}
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
                    "clipped": (summary.get("verdict") or {}).get("clipped"),
                    "pairs": (summary.get("data") or {}).get("probe_pairs"),
                }
            )
        return found

    def ended(self) -> int:
        """When the last cell ended training or evaluation: modification time of its file in ns; 0 if none has."""
        runs = [self.cell(c["id"]) for c in (self.record() or {}).get("cells", [])]
        files = [file for run in runs for file in (run.summary_file, run.path / OUTCOME)]
        return max((f.stat().st_mtime_ns for f in files if f.is_file()), default=0)

    def write_summary(
        self,
        best: Mapping[str, Any] | None,
        collapsed: Sequence[Mapping[str, Any]] = (),
        verdict: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write summary.json from the run directories, and return its content."""
        record = self.record() or {}
        keys = ("id", "overrides", "state", "reason", "metrics", "cost")
        summary = {
            "name": record.get("name"),
            "hash": record.get("hash"),
            "cells": [{k: cell[k] for k in keys} for cell in self.cells()],
            "best": None if best is None else dict(best),
            "collapsed": [dict(one) for one in collapsed],
            "verdict": None if verdict is None else dict(verdict),
        }
        sealed = checksums.sealed(summary)
        write_json(self.path / "summary.json", sealed)
        return sealed


def _is_same_sweep(place: Path, grid: Grid) -> bool:
    """Whether the sweep recorded at `place` is the grid's."""
    old = read(place)
    return old is not None and not _differences(old, grid) and not _keys_swept_in_one(old, grid)


def _is_earlier(place: Path, typed: Typed) -> bool:
    """Whether the same command line made the sweep at `place` under older numerics."""
    old = read(place) or {}
    by_it = any(line.get("texts") == list(typed.texts) for line in old.get("lines", []))
    return by_it and format_version.numerics_of(old) < max(format_version.NUMERICS)


def _differences(old: Mapping[str, Any], grid: Grid) -> dict[str, tuple[Any, Any]]:
    """Settings outside the swept keys in which a recorded sweep and a grid differ."""
    base = old.get("base")
    return identity.differing(base if isinstance(base, dict) else {}, grid.base)


def _keys_swept_in_one(old: Mapping[str, Any], grid: Grid) -> list[str]:
    return [f"swept {k}" for k in sorted(set(old.get("keys", [])) ^ set(grid.keys))]


def another(directory: Path, grid: Grid) -> str | None:
    """A line for the user on the newest other sweep of the same name; None without any, or if `directory` exists."""
    siblings = [p for p in directory.parent.glob(f"{grid.name}-*") if (p / "sweep.json").is_file() and p != directory]
    if directory.exists() or not siblings:
        return None
    newest = max(siblings, key=lambda p: (p / "sweep.json").stat().st_mtime)
    old = SweepDirectory(newest).record() or {}
    keys = [*_differences(old, grid), *_keys_swept_in_one(old, grid)] or ["sweep.json"]
    return f"another sweep than {newest.name} (differs in: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''})"


def _sort_key(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))

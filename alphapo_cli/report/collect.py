"""The data of a report, read from a sweep's directory; `runs` reads those of runs into the same form.

A sweep may be unfinished or damaged: a file that cannot be read is noted as the cell's `fault`, not raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alphapo_cli.config.objective_parts import at_zero
from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.plots import shape_data
from alphapo_cli.plots.shape_data import RewardShape
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import model_step
from alphapo_cli.sweep import analysis as best_of
from alphapo_cli.sweep import verdicts
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.intervals import PROMPTS


@dataclass(frozen=True)
class ReportCell:
    """One cell of the sweep and what its run directory holds so far."""

    run: RunDirectory
    id: str
    values: Mapping[str, Any]  # swept key -> value
    overrides: tuple[str, ...]
    point: int  # index into `Sweep.points`
    state: str
    reason: str | None
    step: int
    rows: list[dict[str, Any]]  # of metrics.jsonl
    final: Mapping[str, Any]  # the last value of every metric
    cost: Mapping[str, Any]
    settings: Mapping[str, Any]  # of config.yaml, dotted; without paths and tracking
    manifest: Mapping[str, Any]
    fault: str | None  # what could not be read
    shape: RewardShape | str | None = None  # of its reward, or why there is none; None: not made yet

    @property
    def model_step(self) -> int:
        """The step that model/ and `final` are of: the best where trainer.load_best_model_at_end kept it, else the last."""
        summary = self.run.summary()
        return self.step if summary is None else model_step(summary)

    @property
    def seed(self) -> Any:
        """The swept seed; None where the seed is not swept."""
        return self.values.get("seed")


@dataclass(frozen=True)
class Axis:
    """The swept key along which outcomes are drawn."""

    key: str
    name: str
    kind: str  # "alpha", "ordered" (other numbers) or "category"


@dataclass(frozen=True)
class Sweep:
    """What a page shows: the cells and points of a sweep, or runs side by side, each of them a point of its own."""

    path: Path  # its directory
    record: Mapping[str, Any]
    cells: list[ReportCell]
    analysis: best_of.Analysis
    best: Mapping[str, Any] | None
    sentence: str

    @property
    def points(self) -> list[best_of.SweepPoint]:
        """The points of the sweep: cells that differ by their seed alone are one point."""
        return self.analysis.points

    @property
    def name(self) -> str:
        """The sweep's name, else that of its directory."""
        return str(self.record.get("name") or self.path.resolve().name)

    @cached_property
    def keys(self) -> list[str]:
        """Swept keys without the seed, in order."""
        named = [str(k) for k in self.record.get("keys") or []]
        found = [k for c in self.cells for k in c.values]
        return [k for k in dict.fromkeys([*named, *found]) if k != "seed"]

    @cached_property
    def axis(self) -> Axis:
        """Alpha where it is swept, else the first key that takes several values."""
        values = {key: list(dict.fromkeys(str(c.values.get(key)) for c in self.cells)) for key in self.keys}
        over_alpha = bool(self.points) and all(p.alpha is not None for p in self.points)
        several = [k for k in self.keys if len(values[k]) > 1] or self.keys
        if not several:
            return Axis("", "configuration", "category")
        key = best_of.ALPHA if over_alpha else several[0]
        if over_alpha:
            kind = "alpha"
        else:
            numbers = [number(c.values.get(key)) for c in self.cells]
            kind = "ordered" if numbers and all(n is not None for n in numbers) else "category"
        return Axis(key, short(key), kind)

    def x(self, point: int) -> float | str:
        """A point's value on the axis."""
        if not self.axis.key:  # seeds alone are swept
            return self.points[point].label
        value = self.points[point].members[0]["point"].get(self.axis.key)
        return value if self.axis.kind != "category" and number(value) is not None else shown(value)

    def series(self, point: int) -> str:
        """The point's other swept values: "beta=2.5"."""
        values = self.points[point].members[0]["point"]
        return " ".join(f"{short(k)}={shown(values.get(k))}" for k in self.keys if k != self.axis.key)

    @property
    def zero(self) -> str | None:
        """The method that the base configuration equals at alpha = 0; None where it has no name."""
        base = self.record.get("base")
        return at_zero(base) if isinstance(base, Mapping) else None

    @property
    def told(self) -> str | None:
        """Whether the best point can be told from alpha = 0; None where nobody compared it."""
        return None if self.best is None else self.best["verdict"]

    @property
    def over(self) -> str:
        """What the intervals of the points are over."""
        known = next((e.over for e in self.analysis.estimates if e is not None), PROMPTS)
        return verdicts.rows_of(self.analysis.metric, known)

    def counts(self) -> dict[str, int]:
        """How many cells are in each state."""
        states = [c.state for c in self.cells]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def number(value: Any) -> float | None:
    """`value` as a float; None where it is null, missing, text or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def short(key: str) -> str:
    """The last part of a dotted key or group; of a name, what it is the name of."""
    key = key.removesuffix(".name")
    return key.rsplit(".", 1)[-1].rsplit("/", 1)[-1]


def shown(value: Any) -> str:
    """A swept value as it would be typed."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def read(directory: SweepDirectory, analysis: best_of.Analysis | None = None) -> Sweep:
    """Read a sweep.

    Args:
        directory: the sweep's directory.
        analysis: its analysis, where that has been computed already.

    Returns:
        The sweep.

    Raises:
        UsageError: the directory does not exist, is not a sweep's, or its sweep.json cannot be read.
    """
    record = _record(directory)
    analysis = analysis or best_of.analyse(directory)
    best = verdicts.find_best(analysis)
    cells = [
        read_cell(directory.cell(member["id"]), member, k)
        for k, point in enumerate(analysis.points)
        for member in point.members
    ]
    return Sweep(directory.path, record, cells, analysis, best, verdicts.sentence(analysis, best))


def _record(directory: SweepDirectory) -> dict[str, Any]:
    """The content of sweep.json; raises UsageError where it is missing or malformed."""
    path = directory.path
    if not path.is_dir():
        raise UsageError(f"{path}: no such directory; give the directory that 'alphapo sweep' printed")
    if not directory.file.is_file():
        if (path / "manifest.json").is_file():
            raise UsageError(
                f"{path} is neither a training run nor a sweep, which have pages; `alphapo ls` names what is there, "
                "`alphapo compare A B` and `alphapo diff A B` read what eval and generate write"
            )
        inside = sorted(p.parent for p in path.glob("*/sweep.json"))
        hint = f"; did you mean {inside[-1]}?" if inside else "; give the directory that 'alphapo sweep' printed"
        raise UsageError(f"{path} is not a sweep's directory (no sweep.json){hint}")
    record = directory.record()
    cells = None if record is None else record.get("cells")
    valid = isinstance(cells, list) and all(
        isinstance(c, dict)
        and isinstance(c.get("id"), str)
        and isinstance(c.get("point"), dict)
        and isinstance(c.get("overrides"), list)
        for c in cells
    )
    if record is None or not valid:
        raise UsageError(
            f"{directory.file} cannot be read; put it back from a copy, or run the sweep under another --out"
        )
    return record


def read_cell(run: RunDirectory, made: Mapping[str, Any], point: int) -> ReportCell:
    """Read one cell.

    Args:
        run: its run directory.
        made: what the sweep has of it: id, point, overrides, state, reason, step, metrics, cost.
        point: index of its point.

    Returns:
        The cell; what could not be read is its `fault`.
    """
    faults: list[str] = []
    try:
        rows = run.rows()
    except (OSError, ValueError, AlphapoError) as error:
        rows = []
        faults.append(str(error))
    changed = run.changed_config()
    if changed is not None:
        faults.append(f"the settings are not those it was trained with ({changed})")
    metrics = made.get("metrics") or {}
    if made["state"] == "complete" and not rows:
        faults.append("metrics.jsonl is missing or empty")
    final = {**({} if made["state"] == "complete" and metrics else _last(rows)), **metrics}
    return ReportCell(
        run=run, id=made["id"], values=made["point"], overrides=tuple(map(str, made["overrides"])), point=point,
        state=str(made["state"]), reason=made.get("reason"), step=int(number(made.get("step")) or 0),
        rows=rows, final=final, cost=made.get("cost") or {}, settings=run.settings(), manifest=run.read_manifest(),
        fault="; ".join(faults) or None, shape=shape_data.read(run.path),
    )  # fmt: skip


def _last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last value of every probe metric, of a run that has not ended."""
    found: dict[str, Any] = {}
    for row in rows:
        found.update({k: v for k, v in row.items() if k != "step" and not k.startswith("train/")})
    return found

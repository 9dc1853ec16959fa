"""The numbers of a report as CSV: one row per point, per cell, and per step of a cell. An empty field is undefined."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.report.collect import Sweep, number
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.csv_text import cell
from alphapo_cli.sweep.intervals import Estimate
from alphapo_cli.sweep.verdicts import rows_of
from alphapo_cli.tracking import metrics as catalog

Row = Mapping[str, Any]


def write_csv(sweep: Sweep, folder: Path) -> dict[str, Path]:
    """Write points.csv, cells.csv and curves.csv into `folder`; their paths by name."""
    tables = {"points": _points(sweep), "cells": _cells(sweep), "curves": _curves(sweep)}
    paths = {}
    for name, rows in tables.items():
        paths[name] = folder / f"{name}.csv"
        _write(paths[name], rows)
    return paths


def _points(sweep: Sweep) -> list[dict[str, Any]]:
    """Means over complete seeds; intervals of the outcome are pointwise, those of the advantages simultaneous."""
    analysis, metrics = sweep.analysis, _ordered(k for c in sweep.cells for k in c.final)
    rows = []
    for k, point in enumerate(sweep.points):
        values = point.members[0]["point"]
        rows.append({
            **{key: values.get(key) for key in sweep.keys},
            "cells": len(point.members),
            "complete": len(point.cells),
            "outcome": analysis.metric,
            **_bounds("outcome", analysis.metric, analysis.estimates[k]),
            **_bounds("advantage_over_alpha_0", analysis.metric, analysis.advantages[k]),
            "verdict": None if (gain := analysis.advantages[k]) is None else gain.verdict,
            **{key: point.mean(key) for key in metrics},
            "clipped_steps": point.clipped,
        })  # fmt: skip
    return rows


def _bounds(name: str, metric: str | None, estimate: Estimate | None) -> dict[str, Any]:
    known: list[Any] = [None] * 4
    if estimate is not None:
        known = [estimate.value, estimate.low, estimate.high, rows_of(metric, estimate.over)]
    return dict(zip((f"{name}_{part}" for part in ("value", "low", "high", "over")), known, strict=True))


def _cells(sweep: Sweep) -> list[dict[str, Any]]:
    metrics = _ordered(k for c in sweep.cells for k in c.final)
    costs = sorted({k for c in sweep.cells for k in c.cost})
    return [
        {
            "cell": c.id, **{k: c.values.get(k) for k in (*sweep.keys, "seed") if k != "seed" or "seed" in c.values},
            "state": c.state, "reason": c.reason, "step": c.step,
            **{k: c.final.get(k) for k in metrics}, **{f"cost/{k}": c.cost.get(k) for k in costs},
        }
        for c in sweep.cells
    ]  # fmt: skip


def _curves(sweep: Sweep) -> list[dict[str, Any]]:
    metrics = _ordered(k for c in sweep.cells for row in c.rows for k in row if k != "step")
    return [
        {"cell": c.id, **c.values, "step": row.get("step"), **{k: row.get(k) for k in metrics}}
        for c in sweep.cells
        for row in c.rows
        if number(row.get("step")) is not None
    ]


def _ordered(keys: Iterable[str]) -> list[str]:
    """Unique keys in the order of the catalogue of metrics, unknown ones last."""
    found, known = set(keys), catalog.keys()
    return [k for k in known if k in found] + sorted(found - set(known))


def _write(path: Path, rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({k: cell(k) for k in columns})
    for row in rows:
        writer.writerow({k: cell(v) for k, v in row.items()})
    write_atomic(path, text.getvalue())

"""The data of the page's figures: one JSON object, small enough for an e-mail.

Numbers are rounded to five significant digits, and long curves are thinned to evenly spaced steps; the CSV files hold
all of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from alphapo_cli.plots import colours
from alphapo_cli.report.collect import ReportCell, Sweep, number, short, shown
from alphapo_cli.report.samples import Answer, Samples
from alphapo_cli.sweep.intervals import DISTINGUISHABLE, Estimate
from alphapo_cli.sweep.verdicts import rows_of
from alphapo_cli.tracking import metrics as catalog

# Values of all curves together (about 7 bytes each), and the number of points that every curve keeps at least.
CURVE_BUDGET, FEWEST = 60_000, 12
TRAIN = ("train/loss", "train/grad_norm", "train/rewards/margins", "train/rewards/accuracies")
# Percentiles that final values also hold, for the bars of the gradient weights.
SPREAD = tuple(f"gradient_weight/{side}/{q}" for side in ("chosen", "rejected") for q in ("p10", "p90"))


def payload(sweep: Sweep, answers: Samples | None, bands: Sequence[str] = ()) -> dict[str, Any]:
    """The page's data: points, cells with their curves, metrics with their explanations, answers.

    Args:
        sweep: what is shown.
        answers: sampled answers, where there are some.
        bands: metrics that are drawn as the ends of a band alone, so that they need no explanation.

    Returns:
        JSON values.
    """
    keys = [k for k in (*catalog.PROBE, *catalog.GLASSBOX, *TRAIN) if any(_known(c, k) for c in sweep.cells)]
    drawn = [*keys, *bands]
    most = max(CURVE_BUDGET // max(len(drawn) * len(sweep.cells), 1), FEWEST)
    grids: dict[tuple[int, ...], int] = {}
    kept = {key: set(thinned(_steps(sweep, key), most)) for key in drawn}
    cells = [_cell(c, drawn, kept, grids) for c in sweep.cells]
    return {
        "axis": {"key": sweep.axis.key, "name": sweep.axis.name, "kind": sweep.axis.kind},
        "groups": _groups(sweep),
        "points": [_point(sweep, k) for k in range(len(sweep.points))],
        "cells": cells,
        "grids": [list(grid) for grid in grids],
        "metrics": {k: _metric(k) for k in keys},
        "outcome": sweep.analysis.metric,
        "zero": sweep.zero,
        "best": sweep.analysis.best,
        "marked": sweep.told in (None, DISTINGUISHABLE),  # a ring without evidence would claim it
        "samples": None if answers is None else _samples(answers),
        "colours": {"diverging": colours.DIVERGING, "ordered": colours.ORDERED, "categories": colours.CATEGORIES},
    }


def _known(cell: ReportCell, key: str) -> bool:
    """Whether the cell has a value of the metric."""
    return number(cell.final.get(key)) is not None or any(number(row.get(key)) is not None for row in cell.rows)


def _groups(sweep: Sweep) -> list[dict[str, Any]]:
    """The swept keys and their values, in order, by which the page filters."""
    groups = []
    for key in sweep.keys:
        values = list(dict.fromkeys(shown(p.members[0]["point"].get(key)) for p in sweep.points))
        groups.append({"key": key, "name": short(key), "values": values})
    return groups


def _point(sweep: Sweep, k: int) -> dict[str, Any]:
    point, analysis = sweep.points[k], sweep.analysis
    values, gain = point.members[0]["point"], analysis.advantages[k]
    return {
        "label": point.label,
        "x": sweep.x(k),
        "series": sweep.series(k),
        "picks": [shown(values.get(key)) for key in sweep.keys],
        "alpha": point.alpha,
        "mean": _estimate(analysis.estimates[k]),
        "gain": _estimate(gain),
        "over": _over(sweep, analysis.estimates[k]),
        "gain_over": _over(sweep, gain),
        "verdict": None if gain is None else gain.verdict,
    }


def _estimate(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [rounded(v) or 0.0 for v in (estimate.value, estimate.low, estimate.high)]


def _over(sweep: Sweep, estimate: Estimate | None) -> str | None:
    return None if estimate is None else rows_of(sweep.analysis.metric, estimate.over)


def _steps(sweep: Sweep, key: str) -> list[int]:
    """Every step at which any cell has a value of `key`."""
    return sorted({step for cell in sweep.cells for step in _curve(cell, key)})


def _curve(cell: ReportCell, key: str) -> dict[int, float]:
    """Step -> value of `key`."""
    curve = {}
    for row in cell.rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None:
            curve[int(step)] = value
    return curve


def _cell(
    cell: ReportCell, keys: Sequence[str], kept: Mapping[str, set[int]], grids: dict[tuple[int, ...], int]
) -> dict[str, Any]:
    """One cell. A curve is [index into `grids`, values], because cells of a sweep share their steps."""
    curves = {}
    for key in keys:
        points = _curve(cell, key)
        steps = tuple(s for s in sorted(points) if s in kept[key] or s == max(points))
        if steps:
            curves[key] = [grids.setdefault(steps, len(grids)), [rounded(points[s]) for s in steps]]
    first = next((row for row in cell.rows if number(row.get("step")) == 0), {})
    return {
        "id": cell.id,
        "point": cell.point,
        "seed": None if cell.seed is None else shown(cell.seed),
        "state": cell.state,
        "final": _numbers(cell.final, (*keys, *SPREAD)),
        "start": _numbers(first, ("gradient_weight/chosen", "gradient_weight/rejected")),
        "curves": curves,
    }


def overlays(sweep: Sweep) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Metric -> label of a point -> (step, mean over complete seeds), at most 100 steps."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in (*catalog.PROBE, *catalog.GLASSBOX):
        for k, point in enumerate(sweep.points):
            curves = [c for c in (_curve(c, key) for c in sweep.cells if c.point == k and c.state == "complete") if c]
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            if shared:
                means = [(float(s), fmean(c[s] for c in curves)) for s in thinned(shared, 100)]
                found.setdefault(key, {})[point.label] = means
    return found


def _numbers(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float]:
    return {k: value for k in keys if (value := rounded(row.get(k))) is not None}


def _metric(key: str) -> dict[str, Any]:
    metric = catalog.lookup(key)
    return {"text": metric.sentence, "bad": metric.bad, "unit": metric.unit}


def _samples(answers: Samples) -> dict[str, Any]:
    def written(column: Sequence[Answer]) -> list[list[Any]]:
        return [[a.text, rounded(a.reward), a.cut] for a in column]

    return {
        "seed": None if answers.seed is None else shown(answers.seed),
        "prompts": answers.prompts,
        "start": written(answers.start),
        "answers": {str(point): written(column) for point, column in answers.answers.items()},
    }


def rounded(value: Any) -> float | None:
    """Round to five significant digits, a tenth of a pixel on any screen; None where `value` is not a finite number."""
    known = number(value)
    return None if known is None else float(f"{known:.5g}")


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spaced by index, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]

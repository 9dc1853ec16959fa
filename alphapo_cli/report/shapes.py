"""What a page shows of reward shapes: the data of its small panels, and the sentences on what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alphapo_cli.plots.shape_data import Field, Numbers, RewardShape, pooled
from alphapo_cli.plots.shape_marks import arrows_of, levels, words_of
from alphapo_cli.report.collect import ReportCell, Sweep
from alphapo_cli.report.numbers import titled

_CURVE, _BINS = 41, 28
_ARROWS, _ALONE = 9, 13  # along each axis of a small panel, and of a page of one run
_DOTS = 300  # pairs whose weights are drawn one by one on a page of one run
_STEPS = 40  # of a path


def payload(sweep: Sweep) -> dict[str, Any]:
    """Point -> what its panels show; points without a shape are missing."""
    alone = len(sweep.cells) == 1
    shapes = {k: pooled(found) for k in range(len(sweep.points)) if (found := _of_point(sweep, k))}
    return {str(k): _panel(found, alone=alone) for k, found in shapes.items()}


def left_out(sweep: Sweep) -> list[str]:
    """Sentences on points that have no shape, or no field; each once, with the points that it is about."""
    said: dict[str, list[str]] = {}
    for cell in sweep.cells:
        shape = cell.shape
        notes = list(shape.notes) if isinstance(shape, RewardShape) else [shape] if shape else []
        if shape is None and (cell.run.path / "probe.jsonl").is_file():
            notes = ["no reward shape has been made yet; 'alphapo report' makes it"]
        for note in notes:
            said.setdefault(note, []).append(titled(sweep.points[cell.point].label))
    many = len(sweep.points) > 1
    return [f"{', '.join(dict.fromkeys(names))}: {note}" if many else note for note, names in said.items()]


def _of_point(sweep: Sweep, k: int) -> list[RewardShape]:
    """Shapes of a point's complete cells; where none is complete, of those that have not failed."""
    cells: list[ReportCell] = [c for c in sweep.cells if c.point == k and c.state != "failed"]
    known = [(c, c.shape) for c in cells if isinstance(c.shape, RewardShape)]
    chosen = [shape for c, shape in known if c.state == "complete"] or [shape for _, shape in known]
    return [shape for shape in chosen if isinstance(shape, RewardShape)]


def _panel(found: RewardShape, *, alone: bool) -> dict[str, Any]:
    places = np.linspace(0, len(found.grid) - 1, _CURVE).round().astype(int)
    steps = np.unique(np.linspace(0, len(found.steps) - 1, min(len(found.steps), _STEPS)).round().astype(int))
    panel: dict[str, Any] = {
        "unit": found.unit,
        "pairs": found.pairs,
        "steps": [int(step) for step in found.steps[steps]],
        "grid": _short(found.grid[places]),
        "shape": _short(found.shape[places]),
        "slope": _short(found.slope[places]),
        "start": {
            part: _short(curve[places])
            for part, curve in (("shape", found.shape_start), ("slope", found.slope_start))
            if curve is not None
        },
        "means": [_short(side[steps]) for side in found.means],
        "saturated": [_short(side[steps]) for side in found.saturated],
        "weights": [_short(side[[0, -1]]) for side in found.weights],
        "words": [words_of(found, side) for side in (0, 1)],
        "limit": _one(found.limit),
        **_histograms(found),
    }
    if found.field is not None:
        arrows = _ALONE if alone else _ARROWS
        panel["field"] = {"ends": _short(found.field.at[[0, -1]]), "by": {"s": _arrows(found.field, arrows)}}
        if alone:
            panel["field"]["by"]["p"] = _arrows(found.field, arrows, probability=True)
    if alone:
        panel["dots"] = [_dots(found, which) for which in ("start", "now")]
    return panel


def _histograms(found: RewardShape) -> dict[str, Any]:
    """Counts of both sides' scores in the same bins, at step 0 and at the end."""
    ends = np.concatenate([part.scores[np.isfinite(part.scores)] for part in (found.start, found.now)])
    edges = np.linspace(ends.min(), max(ends.max(), ends.min() + 1e-9), _BINS + 1)
    counts = {
        name: [np.histogram(side[np.isfinite(side)], edges)[0].tolist() for side in part.scores]
        for name, part in (("start", found.start), ("end", found.now))
    }
    return {"bins": _short(edges[[0, -1]]), "counts": counts}


def _arrows(field: Field, count: int, *, probability: bool = False) -> dict[str, Any]:
    """Places, directions (thousandths, flat) and levels (hundredths) of a field's arrows."""
    places, directions, sizes = arrows_of(field, count, probability=probability)
    return {
        "x": _short(places[:, 0]), "y": _short(places[:, 1]),
        "to": (1000 * directions).round().astype(int).ravel().tolist(),
        "level": (100 * levels(sizes)).round().astype(int).tolist(),
    }  # fmt: skip


def _dots(found: RewardShape, which: str) -> list[list[list[float | None]]]:
    """Scores and sizes of the weights of each side, at most `_DOTS` pairs."""
    part = getattr(found, which)
    kept = np.unique(np.linspace(0, found.pairs - 1, min(found.pairs, _DOTS)).round().astype(int))
    return [[_short(part.scores[side, kept]), _short(np.abs(part.weights[side, kept]))] for side in (0, 1)]


def _short(values: Numbers) -> list[float | None]:
    return [_one(float(value)) for value in values]


def _one(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def words(shapes: Mapping[str, Any]) -> str:
    """What "saturated" means on this page; empty where no point has such a share."""
    if not any(panel["limit"] is not None for panel in shapes.values()):
        return ""
    return (
        "Saturated are answers whose gradient weight is below 1 % of that of a pair whose scores are both 0, where the slope "
        "is h'(0)."
    )

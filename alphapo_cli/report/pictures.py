"""Every figure of the report as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from alphapo_cli.plots import style, sweep_panels
from alphapo_cli.plots.sweep_curves import SweepCurve, displacement_figure
from alphapo_cli.plots.sweep_outcome import outcome_figure
from alphapo_cli.report.collect import Sweep

_ENDINGS = {
    "kl": ("kl/reference", "KL divergence from the start", "nats per token"),
    "length": ("glassbox/length", "Length of the sampled answers", "tokens"),
}


def write_pictures(sweep: Sweep, folder: Path) -> dict[str, list[Path]]:
    """Write the figures that have data as <name>.png and <name>.svg into `folder`; their paths by name."""
    curves = _curves(sweep)
    if not any(curve.rows for curve in curves):
        return {}
    name = sweep.axis.name if sweep.axis.kind == "alpha" else ", ".join(map(_word, sweep.keys)) or "seed"
    metric, advantage = sweep.analysis.metric, sweep.analysis.advantage
    verdict = None if advantage is None else advantage.verdict
    figures: dict[str, Callable[[], Figure]] = {
        "outcome": lambda: outcome_figure(curves, metric, sweep.zero, _best(sweep), name=name, verdict=verdict),
        "displacement": lambda: displacement_figure(curves, name=name),
        "trajectory": lambda: sweep_panels.trajectory_figure(curves, name),
        "quadrants": lambda: sweep_panels.quadrant_figure(curves, name),
        "gradient_weight": lambda: sweep_panels.gradient_figure(curves, name),
    }
    for title, (key, text, unit) in _ENDINGS.items():
        if any(style.number(curve.metrics.get(key)) is not None for curve in curves):
            figures[title] = lambda key=key, text=text, unit=unit: sweep_panels.ending_figure(  # type: ignore[misc]
                curves, key, text, unit, name
            )
    written: dict[str, list[Path]] = {}
    for title, make in figures.items():
        figure = make()
        written[title] = [folder / f"{title}.{kind}" for kind in ("png", "svg")]
        for path in written[title]:
            style.save(figure, path)
    return written


def _word(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _best(sweep: Sweep) -> float | str | None:
    """The best point as `outcome_figure` takes it: alpha, or label."""
    if sweep.analysis.best is None:
        return None
    point = sweep.points[sweep.analysis.best]
    return style.names((p.label for p in sweep.points), bare=True)[point.label] if point.alpha is None else point.alpha


def _curves(sweep: Sweep) -> list[SweepCurve]:
    curves = []
    labels = style.names((p.label for p in sweep.points), bare=True)
    series = style.names(p.series for p in sweep.points)
    for cell in sweep.cells:
        point, estimate = sweep.points[cell.point], sweep.analysis.estimates[cell.point]
        metric = sweep.analysis.metric
        intervals = {} if estimate is None or metric is None else {metric: (estimate.low, estimate.high)}
        curves.append(
            SweepCurve(
                point.alpha,
                labels[point.label],
                cell.rows,
                cell.final,
                cell.state,
                series[point.series],
                intervals,
                "" if estimate is None else estimate.over,
            )
        )
    return curves

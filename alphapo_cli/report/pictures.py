"""Every figure of the report as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from alphapo_cli.plots import style, sweep_panels, sweep_shapes
from alphapo_cli.plots.shape_data import RewardShape
from alphapo_cli.plots.sweep_curves import SweepCurve, displacement_figure
from alphapo_cli.plots.sweep_outcome import outcome_figure
from alphapo_cli.report.collect import Sweep
from alphapo_cli.runs.title import title
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.moved import moved

_ENDINGS = {
    "kl": ("kl/reference", "KL divergence from the start", "nats per token"),
    "length": ("glassbox/length", "Length of the sampled answers", "tokens"),
}


def write_pictures(sweep: Sweep, folder: Path) -> dict[str, list[Path]]:
    """Write the figures that have data as <name>.png and <name>.svg into `folder`; their paths by name."""
    cells = curves(sweep)
    if not any(curve.rows for curve in cells):
        return {}
    name = _name(sweep)
    metric, verdict = sweep.analysis.metric, sweep.told
    figures: dict[str, Callable[[], Figure]] = {
        "outcome": lambda: outcome_figure(cells, metric, sweep.zero, _best(sweep), name=name, verdict=verdict),
        "displacement": lambda: displacement_figure(cells, name=name),
        "trajectory": lambda: sweep_panels.trajectory_figure(cells, name),
        "quadrants": lambda: sweep_panels.quadrant_figure(cells, name),
        "gradient_weight": lambda: sweep_panels.gradient_figure(cells, name),
    }
    if sweep_shapes.has_shapes(cells):
        figures["reward_shape"] = lambda: sweep_shapes.shapes_figure(cells, name, subject(sweep))
        figures["gradient_field"] = lambda: sweep_shapes.fields_figure(cells, name, subject(sweep))
    for file, (key, text, unit) in _ENDINGS.items():
        if any(style.number(curve.metrics.get(key)) is not None for curve in cells):
            figures[file] = lambda key=key, text=text, unit=unit: sweep_panels.ending_figure(  # type: ignore[misc]
                cells, key, text, unit, name
            )
    written: dict[str, list[Path]] = {}
    for file, make in figures.items():
        figure = make()
        written[file] = [folder / f"{file}.{kind}" for kind in ("png", "svg")]
        for path in written[file]:
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


def curves(sweep: Sweep) -> list[SweepCurve]:
    """The cells of a sweep as the pictures take them, with intervals of the outcome and of what moved."""
    found = []
    labels = style.names((p.label for p in sweep.points), bare=True)
    series = style.names(p.series for p in sweep.points)
    far = moved(SweepDirectory(sweep.path), sweep.points)
    metric = sweep.analysis.metric
    counts = {key: far.pairs for key in far.estimates if far.pairs}
    if metric is not None and sweep.analysis.prompts:
        counts[metric] = sweep.analysis.prompts
    for cell in sweep.cells:
        point, estimate = sweep.points[cell.point], sweep.analysis.estimates[cell.point]
        known = {key: estimates[cell.point] for key, estimates in far.estimates.items()}
        if metric is not None:
            known[metric] = estimate
        found.append(
            SweepCurve(
                point.alpha,
                labels[point.label],
                cell.rows,
                cell.final,
                cell.state,
                series[point.series],
                {key: (one.low, one.high) for key, one in known.items() if one is not None},
                "" if estimate is None else estimate.over,
                counts,
                cell.shape if isinstance(cell.shape, RewardShape) else None,
            )
        )
    return found


def draw(sweep: Sweep, cells: list[SweepCurve], places: dict[str, Path]) -> dict[str, Path]:
    """Write displacement.png, outcome.png and reward_shape.png of a sweep, at the paths of these names.

    Args:
        sweep: the sweep.
        cells: its cells, as `curves` gives them.
        places: name -> path.

    Returns:
        Those that were drawn: where no cell has a reward shape, there is no picture of it.
    """
    name, metric, verdict = _name(sweep), sweep.analysis.metric, sweep.told
    style.save(displacement_figure(cells, name=name), places["displacement"])
    figure = outcome_figure(cells, metric, sweep.zero, _best(sweep), name=name, verdict=verdict)
    style.save(figure, places["outcome"])
    if not sweep_shapes.has_shapes(cells):
        places["reward_shape"].unlink(missing_ok=True)
        return {key: path for key, path in places.items() if key != "reward_shape"}
    style.save(sweep_shapes.shapes_figure(cells, name, subject(sweep)), places["reward_shape"])
    return places


def subject(sweep: Sweep) -> str:
    """What all cells have in common, in words: objective, beta, model, pairs."""
    known = [cell for cell in sweep.cells if cell.settings]
    if not known:
        return ""
    first = known[0]
    shared = {k: v for k, v in first.settings.items() if all(cell.settings.get(k) == v for cell in known)}
    data = first.manifest.get("data")
    pairs = data.get("probe_pairs") if isinstance(data, dict) else None
    words = title(shared, pairs if isinstance(pairs, int) else None)
    return words if "objective.name" in shared else words.removeprefix("run, ")


def _name(sweep: Sweep) -> str:
    return sweep.axis.name if sweep.axis.kind == "alpha" else ", ".join(map(_word, sweep.keys)) or "seed"

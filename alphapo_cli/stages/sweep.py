"""`alphapo sweep`: the cells of a grid one after another in one warm process, then the table and the pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alphapo_cli import report
from alphapo_cli.errors import AlphapoError, Interrupted
from alphapo_cli.sweep import best as best_of
from alphapo_cli.sweep.grid import Cell, Grid
from alphapo_cli.sweep.state import SweepDirectory

if TYPE_CHECKING:
    from alphapo_cli.stages.workshop import Workshop

PICTURES = ("displacement", "outcome")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind."""

    summary: dict[str, Any]
    failed: list[str]  # "<overrides>: <reason>" of cells of this line that did not end well
    pictures: dict[str, Path]
    sentence: str


def run_sweep(grid: Grid, directory: SweepDirectory) -> SweepResult:
    """Run what is not complete. A failed cell does not stop the others.

    Raises:
        UsageError: bad input, found before the first cell.
        Interrupted: Ctrl-C or SIGTERM; the same line goes on.
    """
    todo = [cell for cell in grid.cells if directory.cell(cell.id).state != "complete"]
    failed = _run_cells(grid, todo, directory) if todo else []
    found = best_of.find_best(directory)
    summary = directory.write_summary(found)
    pictures = {name: path for name in PICTURES if (path := directory.path / f"{name}.png").is_file()}
    if todo or (grid.cells[0].cfg.tracking.pictures and _older(pictures, directory)):
        pictures = make_pictures(directory, grid)
        _track(grid, directory, pictures, summary, bool(failed))
    report.refresh(directory, pictures=grid.cells[0].cfg.tracking.pictures)
    return SweepResult(summary, failed, pictures, best_of.sentence(directory, found))


def _older(pictures: dict[str, Path], directory: SweepDirectory) -> bool:
    """True where a picture is missing, or a cell ended after it was drawn (by a line that was then killed)."""
    ends = [f.stat().st_mtime for c in directory.cells() if (f := directory.cell(c["id"]).summary_file).is_file()]
    drawn = [path.stat().st_mtime for path in pictures.values()]
    return len(drawn) < len(PICTURES) or min(drawn) < max(ends, default=0.0)


def _run_cells(grid: Grid, todo: Sequence[Cell], directory: SweepDirectory) -> list[str]:
    """Run cells one after another; what failed, and why."""
    # Not before there is something to train: these bring torch and transformers.
    from alphapo_cli.stages.workshop import Workshop

    workshop = Workshop(warm=True)
    for cell in todo:
        directory.cell(cell.id).claim(cell.cfg, replace=False)
        workshop.materials(cell.cfg)
    directory.write(grid)
    _say(f"{grid.description or grid.name}: {len(grid.cells)} cells, {len(grid.cells) - len(todo)} of them complete")
    failed = []
    for number, cell in enumerate(todo, 1):
        _say(f"[{number}/{len(todo)}] {' '.join(cell.overrides)}")
        reason = _run_cell(cell, directory, workshop)
        if reason is not None:
            failed.append(f"{' '.join(cell.overrides)}: {reason}")
            _say(f"  failed: {reason}")
        directory.write_summary(None)
    return failed


def _run_cell(cell: Cell, directory: SweepDirectory, workshop: Workshop) -> str | None:
    """Run one cell; the reason why it failed, or None."""
    from alphapo_cli.runs import manifest
    from alphapo_cli.stages.train import Group, run

    run_directory = directory.cell(cell.id)
    group, quiet = Group(directory.path.name, "cell"), Console(stderr=True, quiet=True)
    try:
        run(cell.cfg, run_directory, workshop=workshop, group=group, console=quiet)
    except (KeyboardInterrupt, Interrupted) as error:
        directory.write_summary(None)
        raise Interrupted(f"interrupted in {' '.join(cell.overrides)}; the same line goes on") from error
    except Exception as error:
        reason = str(error) if isinstance(error, AlphapoError) else f"{type(error).__name__}: {error}"
        if run_directory.state != "failed":  # refused before anything of it was written
            run_directory.begin(cell.cfg, manifest(note="refused before training"))
            run_directory.finish("failed", reason, 0, {}, {})
        return reason
    return None


def make_pictures(directory: SweepDirectory, grid: Grid) -> dict[str, Path]:
    """displacement.png and outcome.png of the whole sweep; nothing where no cell has a curve or tracking.pictures is off."""
    if not grid.cells[0].cfg.tracking.pictures:
        return {}
    from alphapo_cli import plots

    cells = directory.cells()
    metric = best_of.outcome_metric(cells)
    curves = []
    for point in best_of.points(cells):
        values = best_of.per_prompt(directory, point, metric) if metric and point.cells else None
        intervals = {} if metric is None or values is None else {metric: best_of.interval(values)}
        for cell in point.members:
            curves.append(
                plots.SweepCurve(
                    alpha=point.alpha,
                    label=point.label,
                    rows=directory.cell(cell["id"]).rows(),
                    metrics=cell["metrics"],
                    state=cell["state"],
                    series=point.series,
                    intervals=intervals,
                )
            )
    if not any(curve.rows for curve in curves):
        return {}
    zero = {"alphapo": "SimPO", "alphapo_ratio": "DPO"}.get(grid.cells[0].cfg.objective.name)
    name = "alpha" if any(c.alpha is not None for c in curves) else ", ".join(k for k in grid.keys if k != "seed")
    pictures = {picture: directory.path / f"{picture}.png" for picture in PICTURES}
    plots.sweep_displacement(curves, pictures["displacement"], name=name)
    plots.sweep_outcome(curves, pictures["outcome"], metric, zero_name=zero, name=name)
    return pictures


def table(directory: SweepDirectory) -> Table:
    """One row a point, means over its seeds."""
    cells = directory.cells()
    metric = best_of.outcome_metric(cells)
    made = Table(title=f"{directory.path.name}: displacement in nats per token", title_justify="left")
    made.add_column("point")
    for title in ("chosen", "rejected", "chosen down", "margin", "accuracy"):
        made.add_column(title, justify="right")
    win = metric == "glassbox/true_win_rate"
    if win:
        made.add_column("true win rate (95 %)", justify="right")
    made.add_column("seeds", justify="right")
    made.add_column("state")
    for point in best_of.points(cells):
        row = [
            _cell(point.mean("displacement/chosen"), "+.3f"),
            _cell(point.mean("displacement/rejected"), "+.3f"),
            _cell(point.mean("displacement/share_chosen_down"), ".0%"),
            _cell(point.mean("rewards/margins"), ".3g"),
            _cell(point.mean("rewards/accuracies"), ".3f"),
        ]
        if win:
            values = best_of.per_prompt(directory, point, metric) if metric and point.cells else None
            low_high = "" if values is None else " [{:.3f}, {:.3f}]".format(*best_of.interval(values))
            row.append(_cell(point.mean(metric or ""), ".3f") + low_high)
        states = sorted({str(c["state"]) for c in point.members})
        made.add_row(point.label, *row, str(len(point.members)), ", ".join(states))
    return made


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _track(
    grid: Grid, directory: SweepDirectory, pictures: dict[str, Path], summary: dict[str, Any], failed: bool
) -> None:
    """One W&B run of the sweep's own, in the group of its cells, with the pictures and the table."""
    from alphapo_cli.tracking import log_group_summary

    cfg = grid.cells[0].cfg.tracking
    rows = [
        {"cell": c["id"], "overrides": " ".join(c["overrides"]), "state": c["state"], **c["metrics"]}
        for c in summary["cells"]
    ]
    hint = log_group_summary(
        cfg,
        directory.path,
        run_id=f"sweep-{grid.hash}",
        name=directory.path.name,
        group=directory.path.name,
        config=dict(grid.base),
        pictures=pictures,
        cells=rows,
        summary={"best": summary["best"]} if summary["best"] else {},
        exit_code=int(failed),
        overlays=lambda: report.overlays(directory),
    )
    if hint:
        _say(
            f"W&B kept offline; to upload: wandb sync {directory.path}/wandb/offline-run-* {directory.path}/cells/*/wandb/offline-run-*"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""`alphapo sweep`: run the cells of a grid through the engine, then write the analysis, the pictures and the report."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import say
from alphapo_cli.launch.display import Display
from alphapo_cli.launch.engine import Policy, SweepEngine, todo
from alphapo_cli.launch.launchers.launcher import Ended
from alphapo_cli.launch.launchers.registry import make_launcher
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.report import overview, write
from alphapo_cli.runs.state import OVER
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.wording import rate
from alphapo_cli.stages.paths import changed_data
from alphapo_cli.stages.plan import Plan
from alphapo_cli.sweep import analysis as best_of
from alphapo_cli.sweep import verdicts
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell, Grid
from alphapo_cli.sweep.record import JUDGED, WIN_RATE, Typed

_WIN = {WIN_RATE: "true win rate", JUDGED: "win rate"}


@dataclass(frozen=True)
class SweepResult:
    """Result of one invocation of a sweep."""

    summary: dict[str, Any]
    analysis: best_of.Analysis
    failed: list[str]  # "<overrides>: <reason>" of cells that failed in this invocation
    unfinished: list[str]  # overrides of cells that were interrupted or lost; the same command resumes them
    pictures: dict[str, Path]
    sentence: str


def run_sweep(
    grid: Grid,
    directory: SweepDirectory,
    launcher: LauncherConfig,
    policy: Policy,
    plan: Plan | None = None,
    typed: Typed | None = None,
) -> SweepResult:
    """Run the cells that are not over. A failed cell does not stop the others, except under `policy.fail_fast`.

    Args:
        grid: the cells of the sweep.
        directory: its directory.
        launcher: the settings of `launcher.*`.
        policy: how failed cells are treated.
        plan: generation and evaluation after training; None for none.
        typed: the command line, which is recorded.

    Returns:
        The state of the whole sweep, and the cells that failed or are unfinished.

    Raises:
        UsageError: a model, data or file cannot be used; no cell was started.
        Interrupted: Ctrl-C or SIGTERM; the same command resumes the sweep.
    """
    cells = todo(grid.cells, directory, policy, plan)
    if cells:
        for note in (directory.version_note(), None if plan is None else directory.plan_note(plan)):
            if note is not None:
                _log(note)
    ended = _run_cells(grid, cells, directory, launcher, policy, plan, typed) if cells else []
    failed = [f"{e.job.title}: {e.reason}" for e in ended if e.state == "failed"]
    unfinished = [e.job.title for e in ended if e.state not in (*OVER, "failed")]
    known = {cell["id"] for cell in (directory.record() or {}).get("cells", [])}
    if not known.issuperset(cell.id for cell in grid.cells):  # another invocation wrote sweep.json at the same moment
        directory.write(grid, typed, plan)
    complete = [cell for cell in grid.cells if cell not in cells]
    for cell in complete:
        write.refresh_outdated(directory.cell(cell.id), _log)
    _compare_data(complete, directory)
    _compare_numerics(complete, directory)
    analysis = best_of.analyse(directory)
    best = verdicts.find_best(analysis)
    summary = directory.write_summary(best, verdicts.collapses(analysis), verdicts.verdict(analysis, best))
    pictures = overview.existing_pictures(directory)
    if cells or (grid.cells[0].cfg.tracking.pictures and overview.outdated(pictures, analysis)):
        pictures = overview.make_pictures(directory, analysis, grid)
        overview.track(grid, directory, analysis, pictures, summary, bool(failed))
    write.refresh(directory, analysis, pictures=grid.cells[0].cfg.tracking.pictures)
    return SweepResult(summary, analysis, failed, unfinished, pictures, verdicts.sentence(analysis, best))


def _compare_data(complete: Sequence[Cell], directory: SweepDirectory) -> None:
    """Warn where the data files have changed since complete cells were trained on them."""
    changed = [settings for cell in complete if (settings := changed_data(directory.cell(cell.id), cell.cfg))]
    if changed:
        names = " and ".join(sorted({setting for settings in changed for setting in settings}))
        _log(
            f"alphapo: warning: {names} holds other data now than {len(changed)} of the complete cells were trained on; "
            "another --out trains them anew"
        )


def _compare_numerics(complete: Sequence[Cell], directory: SweepDirectory) -> None:
    """Say so when this version computes other results than the one that made complete cells."""
    notes = Counter(
        note for cell in complete if (note := directory.cell(cell.id).numerics_note("another --out trains them anew"))
    )
    for note, many in notes.items():
        _log(f"alphapo: warning: {many} of the complete cells were {note}")


def _run_cells(
    grid: Grid,
    cells: Sequence[Cell],
    directory: SweepDirectory,
    cfg: LauncherConfig,
    policy: Policy,
    plan: Plan | None,
    typed: Typed | None,
) -> list[Ended]:
    """Check all cells, then run them; how each one ended."""
    configs = [cell.cfg for cell in cells]
    for cell in cells:
        run = directory.cell(cell.id)
        run.check(cell.cfg, replace=False, anew=f"remove {run.path} to train the cell from nothing")
    new_folders = [path for path in (directory.path, *directory.path.parents) if not path.exists()]
    if sys.stderr.isatty():
        _log("reading data and starting model (the embedded world trains its own once) ...")
    launcher = make_launcher(cfg, directory, configs)
    try:
        try:
            launcher.prepare(configs, plan)
        except BaseException:
            launcher.close()
            _remove_folders(directory, new_folders)
            raise
        directory.write(grid, typed, plan)
        done = len(grid.cells) - len(cells)
        _log(f"{grid.description or grid.name}: {len(grid.cells)} cells, {done} of them complete")
        with Display(directory, cells) as display:
            engine = SweepEngine(directory, launcher, policy, display.tell, display.tick)
            return engine.run(cells, plan)
    finally:
        launcher.close()


def _remove_folders(directory: SweepDirectory, folders: Sequence[Path]) -> None:
    """Remove the workers' logs and the folders that were made for a sweep that could not start."""
    if directory.path in folders:
        shutil.rmtree(directory.path / "logs", ignore_errors=True)
        for path in folders:
            with contextlib.suppress(OSError):
                path.rmdir()


def table(name: str, analysis: best_of.Analysis) -> Table:
    """A rich table with one row per point, means over its seeds, and what its columns are."""
    metric = analysis.metric
    result = Table(
        title=f"{name}: displacement in nats per token",
        title_justify="left",
        caption=_columns(analysis),
        caption_justify="left",
    )
    result.add_column("point")
    for title in ("chosen", "rejected", "chosen down", "margin", "accuracy", "mean h'", "clipped"):
        result.add_column(title, justify="right")
    win = _WIN.get(metric or "")
    if win:
        result.add_column(win, justify="right")
    result.add_column("seeds", justify="right")
    result.add_column("state")
    for point, estimate in zip(analysis.points, analysis.estimates, strict=True):
        row = [
            _cell(point.mean("displacement/chosen"), "+.3f"),
            _cell(point.mean("displacement/rejected"), "+.3f"),
            _cell(point.mean("displacement/share_chosen_down"), ".0%"),
            _cell(point.mean("rewards/margins"), ".3g"),
            _cell(point.mean("rewards/accuracies"), ".0%"),
            _cell(point.mean("shape/slope"), ".3g"),
            _cell(point.clipped, ".0%"),
        ]
        if win:
            value = point.mean(metric or "")
            ends = None if estimate is None else (estimate.low, estimate.high)
            row.append("-" if value is None else rate(value, None, ends))
        states = sorted({_state(c) for c in point.members})
        result.add_row(point.label, *row, str(len(point.members)), ", ".join(states))
    return result


def _columns(analysis: best_of.Analysis) -> str:
    """What the columns of `table` are, and how many outcomes its rates are of."""
    known = {cell["pairs"] for point in analysis.points for cell in point.members if cell.get("pairs")}
    n = f"{next(iter(known)):,} held-out pairs" if len(known) == 1 else "the held-out pairs"
    parts = [
        "chosen, rejected: mean change of the answers' log-probs since step 0",
        f"chosen down: share of {n} whose chosen answer became less likely; accuracy: share in the right order by reward",
        "mean h': slope of the reward's shape; clipped: share of logged steps whose gradient was clipped",
    ]
    win = _WIN.get(analysis.metric or "")
    if win:
        count = f"n = {analysis.prompts:,} prompts" if analysis.prompts else "its prompts"
        over = next((f", 95 % interval over {e.over}" for e in analysis.estimates if e is not None), "")
        parts.append(f"{win}: against the reference, {count}{over}")
    return "\n".join(parts)


def _state(cell: Mapping[str, Any]) -> str:
    """The state of a cell, for the table; a complete cell has a reason only where it was not evaluated."""
    return "trained, not evaluated" if cell["state"] == "complete" and cell["reason"] else str(cell["state"])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _log(text: str) -> None:
    say(text, file=sys.stderr, flush=True)

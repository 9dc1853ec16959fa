"""`alphapo sweep`: run the cells of a grid through the engine, then write the analysis, the pictures and the report."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from alphapo_cli.errors import say
from alphapo_cli.launch.display import Display
from alphapo_cli.launch.engine import Policy, SweepEngine, todo
from alphapo_cli.launch.launchers.launcher import Ended
from alphapo_cli.launch.launchers.registry import make_launcher, processes_of
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.report import overview, write
from alphapo_cli.runs.state import OVER
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.wording import counted, rate
from alphapo_cli.stages.paths import changed_data
from alphapo_cli.stages.plan import Plan
from alphapo_cli.sweep import analysis as best_of
from alphapo_cli.sweep import verdicts
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell, Grid
from alphapo_cli.sweep.record import JUDGED, WIN_RATE, Typed

# The outcome's heading, and what it is measured against.
_WIN = {
    WIN_RATE: ("true win rate", "against the model before training"),
    JUDGED: ("win rate", "by the judge, against the reference"),
}


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
        run = directory.cell(cell.id)
        run.tidy()
        write.refresh_outdated(run, _log)
    _compare_data(complete, directory)
    _compare_numerics(complete, directory)
    analysis = best_of.analyse(directory)
    best = verdicts.find_best(analysis)
    summary = directory.write_summary(best, verdicts.collapses(analysis), verdicts.verdict(analysis, best))
    pictures = overview.existing_pictures(directory)
    shows = grid.cells[0].cfg.tracking.pictures
    anew = bool(cells) or (shows and overview.outdated(pictures, analysis))
    if anew:
        from alphapo_cli.stages import missing_shapes  # which loads numpy

        missing_shapes.refresh([directory.cell(cell.id) for cell in grid.cells], _log, pictures=False)
        pictures = overview.make_pictures(directory, analysis, grid)
    write.refresh(directory, analysis, pictures=shows)
    if anew:
        overview.track(grid, directory, analysis, pictures, summary, bool(failed))
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
        processes = processes_of(cfg, configs)
        each = f"; each in {processes.description}, which divide its steps among them" if processes.world > 1 else ""
        _log(f"{grid.description or grid.name}: {len(grid.cells)} cells, {done} of them complete{each}")
        with Display(directory, cells) as display:
            engine = SweepEngine(directory, launcher, policy, display.tell, display.tick, processes)
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


def tables(name: str, analysis: best_of.Analysis, width: int) -> list[Table]:
    """Rich tables with one row per point, means over its seeds.

    Args:
        name: of the sweep.
        analysis: its points.
        width: characters of a line: what does not fit goes into a further table.

    Returns:
        The tables.
    """
    points = analysis.points
    columns = [
        ("chosen", [_cell(p.mean("displacement/chosen"), "+.3f") for p in points]),
        ("rejected", [_cell(p.mean("displacement/rejected"), "+.3f") for p in points]),
        ("chosen down", [_share(p.mean("displacement/share_chosen_down")) for p in points]),
        ("margin", [_cell(p.mean("rewards/margins"), ".3g") for p in points]),
        ("accuracy", [_share(p.mean("rewards/accuracies")) for p in points]),
        ("mean h'", [_cell(p.mean("shape/slope"), ".3g") for p in points]),
        ("clipped", [_share(p.clipped) for p in points]),
        *([(_WIN[analysis.metric][0], _rates(analysis))] if analysis.metric in _WIN else []),
        # The means and intervals are those of complete cells.
        ("seeds", [_counts(len(p.cells), len(p.members)) for p in points]),
        ("state", [", ".join(sorted({_state(c) for c in p.members})) for p in points]),
    ]
    first = ("point", [p.label for p in points])
    groups: list[list[tuple[str, list[str]]]] = [[first]]
    for column in columns:
        if len(groups[-1]) > 1 and 1 + sum(map(_width, [*groups[-1], column])) > width:
            groups.append([first])
        groups[-1].append(column)
    found = []
    for k, group in enumerate(groups):
        title = None if k else f"{name}: displacement in nats per token"
        result = Table(title=title, title_justify="left")
        for column in group:
            side = "left" if column[0] in ("point", "state") else "right"
            # Broken here: rich would take the width that is missing from any column.
            heading = Text(textwrap.fill(column[0], min(_width(column), width) - 3))
            result.add_column(heading, justify=side, overflow="fold")
        for row in zip(*(cells for _, cells in group), strict=True):
            result.add_row(*row)
        found.append(result)
    return found


def _counts(done: int, seeds: int) -> str:
    return str(seeds) if done == seeds else f"{done} of {seeds}"


def _width(column: tuple[str, list[str]]) -> int:
    """Characters of a column with one border: a heading may break between its words, what stands beneath it may not."""
    heading, cells = column
    return 3 + max(map(len, [*heading.split(), *cells]))


def _rates(analysis: best_of.Analysis) -> list[str]:
    """The outcome of every point with its interval."""
    values = [point.mean(analysis.metric or "") for point in analysis.points]
    ends = [None if e is None else (e.low, e.high) for e in analysis.estimates]
    return ["-" if v is None else rate(v, None, interval) for v, interval in zip(values, ends, strict=True)]


def columns_of(analysis: best_of.Analysis) -> list[str]:
    """What the columns of `tables` are, and how many outcomes its rates are of, line by line."""
    known = {cell["pairs"] for point in analysis.points for cell in point.members if cell.get("pairs")}
    n = f"{next(iter(known)):,} held-out pairs" if len(known) == 1 else "the held-out pairs"
    parts = [
        "chosen, rejected: mean change of the answers' log-probs since step 0",
        f"chosen down: share of {n} whose chosen answer became less likely; accuracy: share in the right order by reward",
        "margin: mean reward of the chosen answers minus that of the rejected ones, in reward units",
        "mean h': slope of the reward's shape; clipped: share of logged steps whose gradient was clipped",
    ]
    win = _WIN.get(analysis.metric or "")
    if win:
        count = f"n = {counted(analysis.prompts, 'prompt')}" if analysis.prompts else "its prompts"
        over = next((f", 95 % interval over {e.over}" for e in analysis.estimates if e is not None), ", no interval")
        parts.append(f"{win[0]}: {win[1]}, {count}{over}")
    return parts


def _state(cell: Mapping[str, Any]) -> str:
    """The state of a cell, for the table; a complete cell has a reason only where it was not evaluated."""
    return "trained, not evaluated" if cell["state"] == "complete" and cell["reason"] else str(cell["state"])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else rate(value, None)


def _log(text: str) -> None:
    say(text, file=sys.stderr, flush=True)

"""The table of `alphapo sweep --status` and `--dry-run`, made from state files alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from alphapo_cli.runs.state import NOT_EVALUATED, OVER, RunState, last_row
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.wording import USUAL, counted, rate
from alphapo_cli.sweep.record import JUDGED, OUTCOMES, WIN_RATE


def show(
    path: Path, cells: Mapping[str, Sequence[str]], key: str | None, would_run: Collection[str] | None = None
) -> None:
    """Print `status_table`; a pipe, which has no width of its own, gets 160 columns."""
    wide = Console()
    (wide if wide.is_terminal else Console(width=160)).print(status_table(path, cells, key, would_run))


def status_table(
    path: Path, cells: Mapping[str, Sequence[str]], key: str | None, would_run: Collection[str] | None = None
) -> Table:
    """Make the table of cells: state, step, displacement, outcome and reason.

    Args:
        path: the sweep's directory.
        cells: id -> overrides.
        key: key of the evaluation plan of the command line, whose outcomes are shown; None if it has no plan.
        would_run: ids of cells that the command line would run, for a column of its own; None for no such column.

    Returns:
        A row for each cell.
    """
    made = Table(title=f"{path.name}: {counted(len(cells), 'cell')}", title_justify="left")
    dry = ("would run",) if would_run is not None else ()
    for column in ("cell", "settings", "state", *dry, "step", "chosen, nats per token", "outcome", "reason"):
        made.add_column(column, overflow="fold")
    for cell, overrides in cells.items():
        run = RunState(path / "cells" / cell)
        found = run.summary()
        state, summary = run.state_of(found), found or {}
        metrics = last_row(run.metrics) if state == "running" else summary.get("metrics") or {}
        step = metrics.get("step") if state == "running" else summary.get("step")
        judged = run.outcome()
        theirs = key is None or judged.get("key") == key  # an outcome under other settings is not shown
        results = {**metrics, **(judged.get("metrics", {}) if theirs else {})}
        missing = judged.get("reason") or NOT_EVALUATED
        drop = metrics.get("displacement/chosen")
        made.add_row(
            cell,
            " ".join(overrides),
            state,
            *(("yes" if cell in would_run else "no",) if would_run is not None else ()),
            "-" if step is None else str(step),
            "-" if drop is None else f"{drop:+.3f}",
            _outcome(results, summary, judged if theirs else {}),
            str(summary.get("reason") or (missing if key and state in OVER and judged.get("key") != key else "")),
        )
    return made


def judged_rate(outcome: Mapping[str, Any]) -> tuple[str, float] | None:
    """The win rate that a judge gave a run, in words and from 0 to 1.

    Args:
        outcome: the content of outcome.json; empty without one.

    Returns:
        Both, with the interval that the evaluation computed, at its level; None where nothing was judged.
    """
    metrics = outcome.get("metrics") or {}
    value = metrics.get(JUDGED)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    ends = (outcome.get("intervals") or {}).get(JUDGED)
    interval = (float(ends[0]), float(ends[1])) if isinstance(ends, list) and len(ends) == 2 else None
    words = rate(value, metrics.get("eval/n_total"), interval, outcome.get("confidence", USUAL))
    return f"win rate {words}", float(value)


def _outcome(results: Mapping[str, Any], summary: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """The first outcome that a cell has, as a rate with its interval and n."""
    if (found := judged_rate(judged)) is not None:
        return found[0]
    key = next((name for name in OUTCOMES if isinstance(results.get(name), int | float)), None)
    if key is None:
        return "-"
    data, verdict = summary.get("data") or {}, summary.get("verdict") or {}
    n = {JUDGED: results.get("eval/n_total"), WIN_RATE: verdict.get("n")}.get(key, data.get("probe_pairs"))
    low, high = results.get(f"{key}/low"), results.get(f"{key}/high")
    name = {JUDGED: "win rate", WIN_RATE: "true win rate"}.get(key, "accuracy")
    return f"{name} {rate(results[key], n, None if low is None or high is None else (low, high))}"

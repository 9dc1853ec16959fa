"""`alphapo sweep --status` and `--dry-run`: what is known of every cell, from state files alone."""

from __future__ import annotations

from rich.table import Table

from alphapo_cli.stages.pipeline import Plan, outcome
from alphapo_cli.sweep.display import last_row
from alphapo_cli.sweep.engine import OVER, Policy, todo
from alphapo_cli.sweep.grid import Grid
from alphapo_cli.sweep.state import OUTCOMES, SweepDirectory


def status_table(
    grid: Grid, directory: SweepDirectory, policy: Policy, plan: Plan | None = None, *, dry_run: bool
) -> Table:
    """State, step, displacement, outcome and reason of the grid's cells; with `dry_run` also whether each would run."""
    made = Table(title=f"{directory.path.name}: {len(grid.cells)} cells", title_justify="left")
    columns = ("cell", "", "state", *(("would run",) if dry_run else ()), "step", "displacement", "outcome", "reason")
    for column in columns:
        made.add_column(column, overflow="fold")
    chosen = {cell.id for cell in todo(grid.cells, directory, policy, plan)}
    key = None if plan is None else plan.key
    for cell in grid.cells:
        run = directory.cell(cell.id)
        summary = run.summary() or {}
        state = run.state
        metrics = last_row(run.metrics) if state == "running" else summary.get("metrics") or {}
        step = metrics.get("step") if state == "running" else summary.get("step")
        judged = outcome(run)
        found = {**metrics, **judged.get("metrics", {})}
        result = next((found[name] for name in OUTCOMES if found.get(name) is not None), None)
        missing = "trained, not evaluated as this line says" if state in OVER and judged.get("key") != key else ""
        drop = metrics.get("displacement/chosen")
        made.add_row(
            cell.id,
            " ".join(cell.overrides),
            state,
            *(("yes" if cell.id in chosen else "no",) if dry_run else ()),
            "-" if step is None else str(step),
            "-" if drop is None else f"{drop:+.3f}",
            "-" if result is None else f"{result:.3f}",
            summary.get("reason") or (missing if plan is not None else ""),
        )
    return made

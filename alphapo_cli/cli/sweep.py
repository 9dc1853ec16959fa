"""`alphapo sweep`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    PrintConfig,
    StripThink,
    announce,
    check_json_target,
    emit,
    next_step,
    sources,
    stripping,
    typed_again,
)
from alphapo_cli.cli.next_lines import generate_line
from alphapo_cli.cli.run import Annotations, Difficulty, Gamed, Reference
from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.runtime.quiet import quiet_libraries

if TYPE_CHECKING:
    from alphapo_cli.launch.schema import LauncherConfig
    from alphapo_cli.stages.plan import Plan
    from alphapo_cli.sweep.grid import Cell, Grid
    from alphapo_cli.sweep.record import Typed


def register(app: typer.Typer) -> None:
    """Add `alphapo sweep` to the application."""
    app.command()(sweep)


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|FILE.yaml OVERRIDES",
            help="A sweep and Hydra overrides; a list or range sweeps a key.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The sweep's directory (default runs/<NAME>-<hash8>).")
    ] = None,
    reference: Reference = None,
    annotations: Annotations = None,
    difficulty: Difficulty = None,
    gamed: Gamed = None,
    strip_think: StripThink = False,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    json: Json = None,
    status: Annotated[bool, typer.Option("--status", help="Show the state of every cell and exit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and how, and exit.")] = False,
    max_parallel: Annotated[
        int | None, typer.Option("--max-parallel", min=1, help="Cells at a time at most (launcher.workers).")
    ] = None,
    no_retry: Annotated[bool, typer.Option("--no-retry", help="Leave failed cells of earlier lines alone.")] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Stop at the first failed cell, or run the others.")
    ] = False,
) -> None:
    """Run a grid of trainings and draw what alpha does. The same line again continues it.

    With overrides of `generation`, `prompts`, `judge`, `statistics` or `strip_think`, or a --reference, every cell is
    also generated from and evaluated, as by `alphapo run`, and the win rate is the sweep's outcome.

    \b
    Examples:
      alphapo sweep alpha
      alphapo sweep alpha objective.shape.alpha=-0.5,0,0.5,1 seed=0,1,2
      alphapo sweep alpha_ratio model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz
      alphapo sweep objective=simpo,dpo,alphapo
      alphapo sweep alpha launcher=slurm launcher.partition=gpu launcher.gpus=1
    \f

    Raises:
        AlphapoError: cells failed or were interrupted.
    """
    from alphapo_cli.sweep.record import Typed, recorded

    files = {"reference": reference, "annotations": annotations, "difficulty": difficulty, "gamed": gamed}
    typed = Typed((*(arguments or []), *stripping(strip_think)), config_dir, files, config)
    if status and not (dry_run or print_config):
        from alphapo_cli.sweep.status import show

        known = recorded(typed, out)
        if known is not None:
            show(known.path, known.cells, known.key)
            _after_status(known.path, known.cells, "--status")
            return

    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.launch.engine import Policy
    from alphapo_cli.launch.schema import SweepConfig
    from alphapo_cli.sweep.directory import SweepDirectory, another

    line = composed(typed, max_parallel)
    grid, launcher, plan = line.grid, line.launcher, line.plan
    if print_config:
        say(
            f"# {len(grid.cells)} cells over {', '.join(grid.keys)}: "
            + "; ".join(" ".join(c.overrides) for c in grid.cells)
        )
        print(to_yaml(grid.cells[0].cfg), end="")
        print(to_yaml(SweepConfig(launcher)), end="")
        if plan is not None:
            print(plan.to_yaml(), end="")
        return
    if plan is not None:
        plan.check(grid.cells[0].cfg)
    check_json_target(json)
    quiet_libraries(importing=launcher.workers == 0)
    directory = SweepDirectory.of(grid, out, typed)
    grid = directory.check(grid, looking=status or dry_run)
    policy = Policy(not no_retry, fail_fast, launcher.crashes)
    if status or dry_run:
        from alphapo_cli.launch.engine import todo
        from alphapo_cli.launch.launchers.registry import script
        from alphapo_cli.sweep.status import show

        cells = {cell.id: cell.overrides for cell in grid.cells}
        left = {cell.id for cell in todo(grid.cells, directory, policy, plan)}
        if not dry_run:
            say("note: this version has no record of this line here; its cells were composed anew", file=sys.stderr)
        show(directory.path, cells, None if plan is None else plan.key, left if dry_run else None)
        if dry_run:
            print(script(launcher, directory, len(left)), end="")
        _after_status(directory.path, cells, "--dry-run" if dry_run else "--status")
        return
    from alphapo_cli.launch.engine import todo
    from alphapo_cli.stages.best_metric import greater_is_better
    from alphapo_cli.tracking.wandb_preflight import check_tracking

    for cell in grid.cells:
        check_tracking(cell.cfg.tracking)
        greater_is_better(cell.cfg)
    _check_paths(todo(grid.cells, directory, policy, plan), plan)
    announce(directory.path)
    note = another(directory.path, grid)
    if note:
        say(note, file=sys.stderr)

    from rich.console import Console

    from alphapo_cli.launch.run import columns_of, run_sweep, tables
    from alphapo_cli.report.write import HTML
    from alphapo_cli.sweep.analysis import scale_note

    result = run_sweep(grid, directory, launcher, policy, plan, typed)
    console = Console()
    # A pipe has no width; the table needs about 120 columns.
    console = console if console.is_terminal else Console(width=120)
    for table in tables(directory.path.name, result.analysis, console.width):
        console.print(table)
    for text in columns_of(result.analysis):
        say(text)
    if note := scale_note(result.analysis.points):
        say(f"note: {note}", file=sys.stderr)
    say(result.sentence)
    for title, path in result.pictures.items():
        say(f"{title}: {path.resolve()}")
    if (directory.path / HTML).is_file():
        say(f"report: {(directory.path / HTML).resolve()}")
    tell(result.summary["verdict"], directory.path)
    emit({"path": str(directory.path.resolve()), **result.summary}, json)
    rest = f"{len(result.unfinished)} interrupted, which the same line continues"
    if result.failed:
        also = f" ({rest})" if result.unfinished else ""
        raise AlphapoError(f"{len(result.failed)} of {len(grid.cells)} cells failed{also}, first {result.failed[0]}")
    if result.unfinished:
        raise AlphapoError(f"{len(grid.cells)} cells, of them {rest}: first {result.unfinished[0]}")


def _check_paths(cells: Sequence[Cell], plan: Plan | None) -> None:
    """Check, before anything heavy is imported, that models, data and prompts of the cells to run are there."""
    from alphapo_cli.stages.paths import check_paths

    for cfg in {repr((cell.cfg.model, cell.cfg.data)): cell.cfg for cell in cells}.values():
        check_paths(cfg)
    if cells and plan is not None:
        plan.check_files()


def _after_status(path: Path, cells: Mapping[str, Sequence[str]], looking: str) -> None:
    """Print what can be done after `--status` or `--dry-run`, the option `looking`."""
    from alphapo_cli.runs.state import RunState

    if path.is_dir() and all(RunState(path / "cells" / cell).state == "complete" for cell in cells):
        next_step(f"alphapo report {shlex.quote(str(path))}", "every cell is complete; a page of all of them")
    else:
        next_step(typed_again(without=looking), "runs the cells that are left")


def tell(verdict: dict[str, Any], path: Path) -> None:
    """Print to stderr what the sweep found, and what can be done next.

    Args:
        verdict: of summary.json.
        path: the sweep's directory.
    """
    for text in verdict["sentences"]:
        say(f"verdict: {text}", file=sys.stderr)
    best, control = verdict["best"], verdict["control"]
    if best is None:
        next_step(typed_again(), "goes on where it stopped")
        return
    cell = path / "cells" / best
    if verdict["outcome"] == "undecided":
        why = "adds trainings to those that are there: one or two decide nothing"
        next_step(typed_again(adding="seed=0,1,2,3,4"), why)
    if control not in (None, best):
        next_step(
            f"alphapo report {shlex.join([str(cell), str(path / 'cells' / control)])}",
            "the best and alpha = 0 over one another",
        )
    next_step(generate_line(cell))
    next_step(f"alphapo chat {shlex.quote(str(cell))}")


@dataclass(frozen=True)
class SweepLine:
    """A command line of `alphapo sweep`, composed; `plan`: generation and evaluation after training."""

    grid: Grid
    launcher: LauncherConfig
    plan: Plan | None


def composed(typed: Typed, max_parallel: int | None = None) -> SweepLine:
    """Compose all cells of a command line and its launcher.

    Args:
        typed: the command line.
        max_parallel: the value of --max-parallel.

    Returns:
        The cells, and how they are run.

    Raises:
        ConfigError: a name is unknown, or a value is invalid in some cell.
        UsageError: the launcher does not read one of its settings.
    """
    from dataclasses import fields

    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.launch.launchers.registry import check_keys, check_processes
    from alphapo_cli.launch.schema import LauncherConfig, SweepConfig
    from alphapo_cli.stages.plan import (
        LATER,
        hints_from_other_stages,
        make_plan,
        split_line,
        training_part,
    )
    from alphapo_cli.sweep.grid import make
    from alphapo_cli.sweep.record import names_sweep

    texts = list(typed.texts)
    name = texts.pop(0) if texts and names_sweep(texts[0]) else None
    where = sources(typed.config_dir)
    how = [text for text in texts if text.startswith("launcher")]
    training, generation, evaluation = split_line([text for text in texts if text not in how])
    file = load(typed.config)
    beneath = training_part(file)
    with hints_from_other_stages("train", where, [f"launcher.{f.name}" for f in fields(LauncherConfig)]):
        grid = make(name, training, where, None if beneath is None else beneath.without("launcher"))
    later = file is not None and bool(file.part(LATER).settings)
    plan = None
    if generation or evaluation or later or any(typed.files.values()):
        plan = make_plan(generation, evaluation, where, file, **typed.files)
    runs_on = None if file is None else file.part(["launcher"])
    launcher = compose_under(runs_on, "sweep", SweepConfig, [read_line(how, where)], where).launcher
    if max_parallel is not None:
        launcher.workers = max_parallel
    check_keys(launcher)
    check_processes(launcher, [cell.cfg for cell in grid.cells])
    return SweepLine(grid, launcher, plan)

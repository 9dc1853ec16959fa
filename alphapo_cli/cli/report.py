"""`alphapo report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, announce, check_json_target, emit, next_step
from alphapo_cli.errors import UsageError, say


def register(app: typer.Typer) -> None:
    """Add `alphapo report` to the application."""
    app.command()(report)


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|SWEEP...", help="A sweep, finished or not, a run, or several to put side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where to write report.html (default: in the sweep or run; of several, beside the first)."
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Of a sweep: also draw every figure as PNG and SVG.")
    ] = True,
    json: Json = None,
) -> None:
    """What a sweep or runs found, as one HTML file that works offline; of a sweep every figure as PNG and SVG, too.

    A sweep and a run write theirs when they end. Run this while one is going on, after moving its directory, or to see
    the curves of several runs over one another, what differs in their settings, and a table of their outcomes.

    \b
    Examples:
      alphapo report runs/alpha-32d923ab
      alphapo report runs/alpha-32d923ab --out talk --no-pictures
      alphapo report runs/dpo-1a2b3c4d runs/alphapo-5e6f7a8b
    \f

    Raises:
        UsageError: a directory holds neither a run nor a sweep, or the report cannot be written.
    """
    from alphapo_cli.report.write import beside, write_report, write_runs
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.sweep.directory import SweepDirectory

    check_json_target(json)
    alone = len(paths) == 1
    is_sweep = alone and (SweepDirectory(paths[0]).file.exists() or not RunDirectory(paths[0]).is_run)
    target = out or (paths[0] if alone else beside(paths))
    try:
        if is_sweep:
            written = write_report(SweepDirectory(paths[0]), out, pictures=pictures)
        else:
            written = write_runs(paths, target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{target} cannot be written to ({reason}); choose another place by --out") from error
    announce(written.html)
    say(written.sentence)
    next_step(f"open {shlex.quote(str(written.html))} in a browser; it needs no network")
    emit(
        {
            "path": str(written.html.resolve()),
            "pictures": {name: [str(p.resolve()) for p in paths] for name, paths in written.pictures.items()},
            "csv": {name: str(p.resolve()) for name, p in written.csv.items()},
            "sentence": written.sentence,
        },
        json,
    )

"""`alphapo report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphapo_cli.cli.common import Json, announce, check_json_target, emit, next_step
from alphapo_cli.errors import UsageError, say

if TYPE_CHECKING:
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.sweep.directory import SweepDirectory


def register(app: typer.Typer) -> None:
    """Add `alphapo report` to the application."""
    app.command(short_help="What a sweep or runs found, as one HTML page.")(report)


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
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Also draw every figure of a sweep as PNG and SVG, and a run's reward_shape.png.",
        ),
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
    from alphapo_cli.report.write import beside, is_page, write_report, write_runs
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.sweep.directory import SweepDirectory

    check_json_target(json)
    for page in [path for path in paths if is_page(path)][: len(paths) - 1]:
        say(f"note: {page} is a page that this command has written, and no run; it is left out", file=sys.stderr)
        paths = [path for path in paths if path != page]
    alone = len(paths) == 1
    is_sweep = alone and (SweepDirectory(paths[0]).file.exists() or not RunDirectory(paths[0]).is_run)
    target = out or (paths[0] if alone else beside(paths))
    _complete(paths, is_sweep=is_sweep, pictures=pictures)
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
    next_step(f"xdg-open {shlex.quote(str(written.html))}", "or open it in any browser: it needs no network")
    emit(
        {
            "path": str(written.html.resolve()),
            "pictures": {name: [str(p.resolve()) for p in paths] for name, paths in written.pictures.items()},
            "csv": {name: str(p.resolve()) for name, p in written.csv.items()},
            "sentence": written.sentence,
        },
        json,
    )


def _complete(paths: list[Path], *, is_sweep: bool, pictures: bool) -> None:
    """Make what the pages read and runs of earlier versions, or runs that go on, do not have."""
    from alphapo_cli.report.runs import find_runs
    from alphapo_cli.stages import missing_shapes
    from alphapo_cli.sweep.directory import SweepDirectory

    runs = _cells(SweepDirectory(paths[0])) if is_sweep else find_runs(paths)
    missing_shapes.refresh(runs, lambda text: say(text, file=sys.stderr), pictures=pictures and not is_sweep)


def _cells(directory: SweepDirectory) -> list[RunDirectory]:
    """The cells of a sweep; a sweep.json that is damaged is refused later, and has none here."""
    found = (directory.record() or {}).get("cells")
    ids = [cell.get("id") for cell in found if isinstance(cell, dict)] if isinstance(found, list) else []
    # An id of a sweep.json that is not ours could lead out of the sweep.
    return [directory.cell(name) for name in ids if isinstance(name, str) and Path(name).name == name != ".."]

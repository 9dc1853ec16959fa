"""`alphapo report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, announce, check_json_target, emit
from alphapo_cli.errors import UsageError, say


def register(app: typer.Typer) -> None:
    """Add `alphapo report` to the application."""
    app.command()(report)


def report(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The directory of a sweep, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write report.html and report/ (default: the sweep's own).")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Also draw every figure as PNG and SVG.")
    ] = True,
    json: Json = None,
) -> None:
    """What a sweep found, as one HTML file that works offline; every figure as PNG and SVG, every number as CSV.

    A sweep writes its report when it ends. Run this while one is going on, or after moving its directory.

    \b
    Examples:
      alphapo report runs/alpha-32d923ab
      alphapo report runs/alpha-32d923ab --out talk --no-pictures
    \f

    Raises:
        UsageError: the report cannot be written.
    """
    from alphapo_cli.report.write import write_report
    from alphapo_cli.sweep.directory import SweepDirectory

    check_json_target(json)
    directory = SweepDirectory(sweep)
    try:
        written = write_report(directory, out, pictures=pictures)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{out or sweep} cannot be written to ({reason}); choose another place by --out") from error
    announce(written.html)
    say(written.sentence)
    emit(
        {
            "path": str(written.html.resolve()),
            "pictures": {name: [str(p.resolve()) for p in paths] for name, paths in written.pictures.items()},
            "csv": {name: str(p.resolve()) for name, p in written.csv.items()},
            "sentence": written.sentence,
        },
        json,
    )

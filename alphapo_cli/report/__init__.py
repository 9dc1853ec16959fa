"""The report of a sweep: report.html, and beside it report/ with every figure as PNG and SVG and every number as CSV."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.files import write_atomic
from alphapo_cli.run_state import OUTCOME
from alphapo_cli.sweep.state import SweepDirectory

HTML, FOLDER = "report.html", "report"


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    csv: dict[str, Path]
    pictures: dict[str, list[Path]]  # figure -> PNG and SVG
    sentence: str


def write_report(directory: SweepDirectory, out: Path | None = None, *, pictures: bool = True) -> ReportFiles:
    """Write the report of a sweep into its directory, or into `out`.

    Raises:
        UsageError: `directory` is not a sweep's.
    """
    # Here and not above: `alphapo --help` must not wait for them.
    from alphapo_cli.report import collect, csv_files, page

    ends = ends_of(directory)
    sweep = collect.read(directory)
    target = out or directory.path
    drawn: dict[str, list[Path]] = {}
    if pictures:
        from alphapo_cli.report import pictures as drawing

        drawn = drawing.write_pictures(sweep, target / FOLDER)
    tables = csv_files.write_csv(sweep, target / FOLDER)
    write_atomic(target / HTML, page.page(sweep))
    if ends:  # as old as what it shows: a cell that ended while it was drawn is newer than it
        with contextlib.suppress(OSError):
            os.utime(target / HTML, ns=(max(ends), max(ends)))
    return ReportFiles(target / HTML, tables, drawn, sweep.sentence)


def overlays(directory: SweepDirectory) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For every probe metric the mean curve of each point, label -> (step, value): an overlay chart for W&B."""
    from alphapo_cli.report import collect, payload

    return payload.overlays(collect.read(directory))


def refresh(directory: SweepDirectory, *, pictures: bool = True) -> Path | None:
    """The report at the end of a sweep: written where there is none, or a cell was trained or judged since. Its path."""
    html = directory.path / HTML
    ends = ends_of(directory)
    if not ends:
        return None
    if html.is_file() and html.stat().st_mtime_ns >= max(ends):
        return html
    return write_report(directory, pictures=pictures).html


def ends_of(directory: SweepDirectory) -> list[int]:
    """When the cells ended, in training and in evaluation: times of change in ns."""
    runs = [directory.cell(c["id"]) for c in directory.cells()]
    files = [file for run in runs for file in (run.summary_file, run.path / OUTCOME)]
    return [f.stat().st_mtime_ns for f in files if f.is_file()]

"""The report of a sweep: report.html, and beside it report/ with every figure as PNG and SVG and every number as CSV."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.sweep.analysis import Analysis
from alphapo_cli.sweep.directory import SweepDirectory

HTML, FOLDER = "report.html", "report"


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    csv: dict[str, Path]
    pictures: dict[str, list[Path]]  # figure -> PNG and SVG
    sentence: str


def write_report(
    directory: SweepDirectory, out: Path | None = None, analysis: Analysis | None = None, *, pictures: bool = True
) -> ReportFiles:
    """Write the report of a sweep into its directory, or into `out`; `analysis`: its outcome, where it is known.

    Raises:
        UsageError: `directory` is not a sweep's.
    """
    # Here and not above: `alphapo --help` must not wait for them.
    from alphapo_cli.report import collect, csv_files, page

    sweep = collect.read(directory, analysis)
    target = out or directory.path
    drawn: dict[str, list[Path]] = {}
    if pictures:
        from alphapo_cli.report import pictures as drawing

        drawn = drawing.write_pictures(sweep, target / FOLDER)
    tables = csv_files.write_csv(sweep, target / FOLDER)
    write_atomic(target / HTML, page.page(sweep))
    ended = sweep.analysis.ended
    if ended:  # as old as what it shows: a cell that ended while it was drawn is newer than it
        with contextlib.suppress(OSError):
            os.utime(target / HTML, ns=(ended, ended))
    return ReportFiles(target / HTML, tables, drawn, sweep.sentence)


def overlays(directory: SweepDirectory, analysis: Analysis) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For every probe metric the mean curve of each point, label -> (step, value): an overlay chart for W&B."""
    from alphapo_cli.report import collect, payload

    return payload.overlays(collect.read(directory, analysis))


def refresh(directory: SweepDirectory, analysis: Analysis, *, pictures: bool = True) -> Path | None:
    """The report at the end of a sweep: written where there is none, or a cell was trained or judged since. Its path."""
    html = directory.path / HTML
    if not analysis.ended:
        return None
    if html.is_file() and html.stat().st_mtime_ns >= analysis.ended:
        return html
    return write_report(directory, analysis=analysis, pictures=pictures).html

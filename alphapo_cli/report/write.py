"""Writing the report of a sweep: report.html, and report/ with the figures as PNG and SVG and the numbers as CSV."""

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
    """The files of a report, and the sentence that sums it up."""

    html: Path
    csv: dict[str, Path]
    pictures: dict[str, list[Path]]  # figure -> PNG and SVG
    sentence: str


def write_report(
    directory: SweepDirectory, out: Path | None = None, analysis: Analysis | None = None, *, pictures: bool = True
) -> ReportFiles:
    """Write the report of a sweep.

    Args:
        directory: the sweep's directory.
        out: where to write; None: the sweep's directory.
        analysis: the sweep's analysis, where that has been computed already.
        pictures: whether to write the figures as PNG and SVG too.

    Returns:
        The files.

    Raises:
        UsageError: `directory` is not a sweep's.
    """
    # Imported here, so that `alphapo --help` does not wait for it.
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
    if ended:  # the time of the last cell it shows: one that ended while it was written is newer
        with contextlib.suppress(OSError):
            os.utime(target / HTML, ns=(ended, ended))
    return ReportFiles(target / HTML, tables, drawn, sweep.sentence)


def overlays(directory: SweepDirectory, analysis: Analysis) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Metric -> label of a point -> (step, mean over complete seeds), for W&B's overlay charts."""
    from alphapo_cli.report import collect, payload

    return payload.overlays(collect.read(directory, analysis))


def refresh(directory: SweepDirectory, analysis: Analysis, *, pictures: bool = True) -> Path | None:
    """Write the report where it is missing or older than the last cell; its path, None where no cell has ended."""
    html = directory.path / HTML
    if not analysis.ended:
        return None
    if html.is_file() and html.stat().st_mtime_ns >= analysis.ended:
        return html
    return write_report(directory, analysis=analysis, pictures=pictures).html

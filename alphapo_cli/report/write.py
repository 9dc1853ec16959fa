"""Writing reports: report.html of a sweep or of runs, and report/ with figures as PNG and SVG and numbers as CSV."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.errors import in_words
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OUTCOME
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.hashing import digest
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


def write_run(path: Path) -> Path:
    """Write report.html of one run into its directory.

    Args:
        path: the run directory.

    Returns:
        The file.

    Raises:
        UsageError: the directory is no run's.
        OSError: it cannot be written.
    """
    return write_runs([path], path).html


def refresh_run(path: Path, log: Callable[[str], None]) -> Path | None:
    """Write the page of a run that has ended; what fails is told and no failure of the run.

    Args:
        path: the run directory.
        log: takes a note to the user where it could not be written.

    Returns:
        The file; None where it could not be written.
    """
    try:
        return write_run(path)
    except Exception as error:
        log(f"note: {path / HTML} was not written ({in_words(error)}); 'alphapo report {path}' tries again")
        return None


def refresh_outdated(run: RunDirectory, log: Callable[[str], None]) -> None:
    """Write the page of a run that is over where there is none, or it is older than the results.

    So it is where the process was killed between the results and the page. Runs of other numerics stay as they are.

    Args:
        run: the run.
        log: as for `refresh_run`.
    """
    page = run.path / HTML
    results = (run.summary_file, run.path / OUTCOME)
    ended = max((file.stat().st_mtime_ns for file in results if file.is_file()), default=0)
    outdated = not (page.is_file() and page.stat().st_mtime_ns >= ended)
    if outdated and run.metrics.is_file() and run.numerics_note() is None:
        refresh_run(run.path, log)


def beside(paths: Sequence[Path]) -> Path:
    """The directory of a report of several runs, beside the first of them and named by all."""
    found = [path.resolve() for path in paths]
    return paths[0].parent / f"report-{digest([str(path) for path in found])[:8]}"


def is_page(path: Path) -> bool:
    """Whether a directory is one that `beside` has named, which a pattern such as `runs/*` finds among the runs."""
    return (
        bool(re.fullmatch(r"report-[0-9a-f]{8}", path.name))
        and (path / HTML).is_file()
        and not (path / "config.yaml").exists()
    )


def write_runs(paths: Sequence[Path], out: Path) -> ReportFiles:
    """Write the page of runs; of several with their numbers as CSV.

    Args:
        paths: directories of runs, and of sweeps, which stand for their cells.
        out: the directory to write to.

    Returns:
        The files.

    Raises:
        UsageError: a directory is neither a run's nor a sweep's.
        OSError: `out` cannot be written to.
    """
    from alphapo_cli.report import csv_files, run_page, runs

    found = runs.find_runs(paths)
    shown = runs.read_runs(found, out)
    tables = csv_files.write_csv(shown, out / FOLDER) if len(found) > 1 else {}
    write_atomic(out / HTML, run_page.page(shown, paths))
    return ReportFiles(out / HTML, tables, {}, shown.name)


def overlays(directory: SweepDirectory, analysis: Analysis) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Metric -> label of a point -> (step, mean over complete seeds), for W&B's overlay charts."""
    from alphapo_cli.report import collect, payload

    return payload.overlays(collect.read(directory, analysis))


def frontier_picture(directory: SweepDirectory) -> dict[str, Path]:
    """The picture of the frontier in report/, by name; empty where the sweep has none, or cells have ended since."""
    path = directory.path / FOLDER / "frontier.png"
    html = directory.path / HTML
    there = path.is_file() and html.is_file() and path.stat().st_mtime_ns >= html.stat().st_mtime_ns
    return {"frontier": path} if there else {}


def refresh(directory: SweepDirectory, analysis: Analysis, *, pictures: bool = True) -> Path | None:
    """Write the report where it is missing or older than the last cell; its path, None where no cell has ended."""
    html = directory.path / HTML
    if not analysis.ended:
        return None
    if html.is_file() and html.stat().st_mtime_ns >= analysis.ended:
        return html
    return write_report(directory, analysis=analysis, pictures=pictures).html

"""`alphapo verify`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, check_json_target, emit, next_step
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runs.state import OUTCOME, RunState
from alphapo_cli.runtime import wording
from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import read_object


def register(app: typer.Typer) -> None:
    """Add `alphapo verify` to the application."""
    app.command(short_help="Compare the files of finished results with their checksums.")(verify)


def verify(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of runs, sweeps, generations, evaluations or measurements."),
    ],
    json: Json = None,
) -> None:
    """Read every file of finished results, and compare it with the checksum taken when it was written.

    A command that finds its directory complete compares the sizes of files; this reads them. Exit code 1 if a file is
    missing or has changed.

    \b
    Examples:
      alphapo verify runs/alpha-32d923ab
      alphapo verify runs --json damage.json
    \f

    Raises:
        UsageError: a directory is none that alphapo has written.
        Exit: with code 1, where something is damaged.
    """
    check_json_target(json)
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for directory in (result for given in directories for result in _results(given)):
        summaries = list(_summaries(directory))
        if not summaries and len(directories) == 1:
            raise UsageError(
                f"{directory}: no summary.json here or in cells/; name a run, a sweep, a generation or an evaluation"
            )
        if not summaries:  # runs/* may name others, too
            found[str(directory)] = "not verified: no run, sweep or generation", {}
        for summary in summaries:
            found[str(summary.parent)] = _look(summary)
        for summary in (directory / "summary.json",) if (directory / "cells").is_dir() else ():
            if summary.is_file() and checksums.intact(read_object(summary)) is None:
                found[str(summary)] = "damaged", {summary.name: "cannot be read, or has changed"}
        record = directory / "sweep.json"
        if record.is_file() and checksums.intact(read_object(record)) is None:
            found[str(record)] = "damaged", {record.name: "cannot be read, or has changed"}
    for place, (verdict, damage) in found.items():
        say(f"{place}: {verdict}")
        for name, what in damage.items():
            say(f"  {name}: {what}")
    emit({place: {"verdict": verdict, "damage": damage} for place, (verdict, damage) in found.items()}, json)
    if any(damage for _, damage in found.values()):
        say("put the damaged files back from a copy, or type the line that made them with --replace", file=sys.stderr)
        places = shlex.join(dict.fromkeys(map(str, directories)))
        next_step(f"alphapo verify {places}", "looks again")
        raise typer.Exit(1)


def _results(directory: Path) -> list[Path]:
    """A result's directory, or those within a folder of results, such as runs/."""
    if (directory / "cells").is_dir() or any((directory / name).is_file() for name in checksums.FINAL):
        return [directory]
    within = sorted(path for path in directory.glob("*/") if any(_summaries(path)))
    return within or [directory]


def _summaries(directory: Path) -> Iterator[Path]:
    """The last files of the results in a directory, of the answers and evaluations inside a run too."""
    for run in sorted(directory.glob("cells/*")) if (directory / "cells").is_dir() else [directory]:
        inside = (*sorted(run.glob("generate*/summary.json")), *sorted(run.glob("eval*/results.json")))
        yield from (file for file in (*(run / name for name in checksums.FINAL), *inside) if file.is_file())


def _look(file: Path) -> tuple[str, dict[str, str]]:
    """What to say of the directory of a result that was written last, and the damage."""
    summary = checksums.intact(read_object(file))
    if summary is None:
        return "damaged", {file.name: "cannot be read, or has changed"}
    state, files = summary.get("state"), summary.get("files")
    if state not in ("complete", "stopped"):
        return f"{state}, so that nothing is final yet", {}
    if not isinstance(files, dict) or not files:
        return "no checksums (written by an older alphapo)", {}
    damage = checksums.damaged(file.parent, files)
    run = RunState(file.parent)
    changed = run.changed_config()
    if run.manifest.is_file() and not run.read_manifest():
        damage[run.manifest.name] = "cannot be read, or has changed"
    if changed is not None:
        damage[run.config.name] = changed.partition(": ")[2] or changed
    outcome = run.path / OUTCOME
    if outcome.is_file() and checksums.intact(read_object(outcome)) is None:
        damage[outcome.name] = "cannot be read, or has changed"
    size = 0 if damage else sum(entry["size"] for entry in files.values())
    count = "1 file, as it was" if len(files) == 1 else f"{len(files)} files, as they were"
    return "damaged" if damage else f"{count} written ({wording.size(size)})", damage

"""`alphapo verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, check_json_target, emit
from alphapo_cli.errors import UsageError
from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import read_object


def register(app: typer.Typer) -> None:
    """Add `alphapo verify` to the application."""
    app.command()(verify)


def verify(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Directories of runs, sweeps, generations or measurements.")
    ],
    json: Json = None,
) -> None:
    """Read every file of finished runs, sweeps and generations, and compare it with the checksum taken when it was written.

    A command that finds its directory complete compares the sizes of files; this reads them. Exit code 1 if a file is
    missing or has changed.

    \b
    Examples:
      alphapo verify runs/alpha-32d923ab
      alphapo verify runs/* --json damage.json
    \f

    Raises:
        UsageError: a directory is none that alphapo has written.
        Exit: with code 1, where something is damaged.
    """
    check_json_target(json)
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for directory in directories:
        summaries = list(_summaries(directory))
        if not summaries and len(directories) == 1:
            raise UsageError(f"{directory}: no summary.json here or in cells/; name a run, a sweep or a generation")
        if not summaries:  # runs/* names evaluations, too
            found[str(directory)] = "not verified: no run, sweep or generation", {}
        for summary in summaries:
            found[str(summary.parent)] = _look(summary)
    for place, (verdict, damage) in found.items():
        print(f"{place}: {verdict}")
        for name, what in damage.items():
            print(f"  {name}: {what}")
    emit({place: {"verdict": verdict, "damage": damage} for place, (verdict, damage) in found.items()}, json)
    if any(damage for _, damage in found.values()):
        raise typer.Exit(1)


def _summaries(directory: Path) -> Iterator[Path]:
    written = (directory / name for name in ("summary.json", "metrics.json"))  # the second by alphapo measure
    yield from (p for p in written if p.is_file() and not (directory / "cells").is_dir())
    yield from sorted(directory.glob("cells/*/summary.json"))


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
    size = sum(entry.get("size", 0) for entry in files.values() if isinstance(entry, dict))
    return "damaged" if damage else f"{len(files)} files, {size / 2**20:.1f} MiB, as they were written", damage

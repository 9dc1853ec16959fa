"""`alphapo ls`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import Json, check_json_target, emit, next_step, print_list
from alphapo_cli.errors import UsageError, nearest, say

if TYPE_CHECKING:
    from alphapo_cli.cli.housekeeping.entries import Entry

SORTS = ("name", "kind", "state", "outcome", "size", "age")


def register(app: typer.Typer) -> None:
    """Add `alphapo ls` to the application."""
    app.command(short_help="What is there: runs, sweeps, answers, evaluations.")(ls)


def ls(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to look, three levels deep; a sweep shows its cells.")
    ] = Path("runs"),
    sort: Annotated[str, typer.Option("--sort", metavar="BY", help=f"One of {', '.join(SORTS)}.")] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    json: Json = None,
) -> None:
    """Runs, sweeps, generations and evaluations: state, outcome, size and age.

    By name and kind from A to Z, by outcome and size the largest first, by age the newest first. An entry of --json has
    path, kind, state, outcome (in words), value (the win rate in it, 0 to 1; null without one), size (bytes), changed
    (seconds since 1970) and, of a sweep's cell, its overrides.

    \b
    Examples:
      alphapo ls
      alphapo ls runs --sort size
      alphapo ls runs/alpha-32d923ab --sort outcome --json -
    \f

    Raises:
        UsageError: there is no such folder, or no such order.
    """
    from alphapo_cli.cli.housekeeping.entries import RUN, SWEEP, cells, describe, find, kind_of
    from alphapo_cli.runtime.wording import counted, duration, size

    if sort not in SORTS:
        raise UsageError(f"--sort {sort}: no such order{nearest(sort, SORTS)} (choices: {', '.join(SORTS)})")
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder; name the one that holds your runs (their run.dir, by default runs)"
        )
    check_json_target(json)
    kind = kind_of(folder)
    named = dict(cells(folder)) if kind == SWEEP else {}
    looked_at: list[tuple[Path, str | None]] = [(path, RUN) for path in named]
    looked_at = looked_at or list(find(folder))
    unread = [path for path, kind in looked_at if kind is None]
    found = [describe(path, kind) for path, kind in looked_at if kind is not None]
    found = _sorted(found, sort, reverse)
    now = time.time()
    rows = [
        [
            named.get(e.path) or _name(e.path, folder),
            e.kind,
            e.state,
            e.outcome,
            size(e.size),
            duration(now - e.changed),
        ]
        for e in found
    ]
    print_list(["name", "kind", "state", "outcome", "size", "age"], rows, right=("size", "age"))
    emit({"path": str(folder.resolve()), "entries": [_row(e, named.get(e.path)) for e in found]}, json)
    if unread:
        say(f"note: {counted(len(unread), 'folder')} cannot be read, {unread[0]} first", file=sys.stderr)
    if not found:
        next_step("alphapo train", f"nothing of alphapo's is in {folder}; this makes a run in runs/")
    else:
        next_step("alphapo rm DIR", "removes one, after asking")
        if len(found) > 1:
            next_step("alphapo diff A B", f"compares two of the {len(found)}")
        _page(found, folder)


def _page(found: Sequence[Entry], folder: Path) -> None:
    """Print the line for the cells or the page of what changed last."""
    from alphapo_cli.cli.housekeeping.entries import RUN, SWEEP

    newest = max((e for e in found if e.kind in (RUN, SWEEP)), key=lambda e: e.changed, default=None)
    if newest is None:
        return
    path = shlex.quote(str(newest.path))
    if newest.kind == SWEEP and newest.path != folder:
        next_step(f"alphapo ls {path} --sort outcome", "its cells, the best first")
    else:
        next_step(f"alphapo report {path}", f"a page of the {newest.kind} that changed last")


def _sorted(found: list[Entry], sort: str, reverse: bool) -> list[Entry]:
    found = sorted(found, key=lambda e: str(e.path))
    if sort == "name":
        return found[::-1] if reverse else found
    keys: dict[str, Any] = {
        "kind": lambda e: e.kind,
        "state": lambda e: e.state,
        "outcome": lambda e: e.value if reverse else -e.value,
        "size": lambda e: -e.size,
        "age": lambda e: -e.changed,
    }
    if sort == "outcome":  # those without one stand last, whichever way the others go
        with_one = [e for e in found if e.value is not None]
        return sorted(with_one, key=keys[sort]) + [e for e in found if e.value is None]
    return sorted(found, key=keys[sort], reverse=reverse)


def _name(path: Path, folder: Path) -> str:
    return path.resolve().name if path == folder else path.relative_to(folder).as_posix()


def _row(entry: Entry, overrides: str | None) -> dict[str, Any]:
    row = {**asdict(entry), "path": str(entry.path.resolve())}
    return row if overrides is None else {**row, "overrides": overrides.split(" ")}

"""`alphapo rm`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import next_step
from alphapo_cli.errors import UsageError, say

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add `alphapo rm` to the application."""
    app.command()(rm)


def rm(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Directories of runs, sweeps, generations or evaluations.")
    ],
    yes: Yes = False,
) -> None:
    """Remove runs, sweeps, generations or evaluations, after asking. Never one that a process works on.

    \b
    Examples:
      alphapo rm runs/alphapo-1a2b3c4d
      alphapo rm runs/alpha-32d923ab runs/eval-alphapo-1a2b3c4d-0f1e2d3c --yes
    \f

    Raises:
        UsageError: a directory cannot be removed (then none is), or nobody can be asked.
    """
    from alphapo_cli.cli.housekeeping.entries import describe
    from alphapo_cli.cli.housekeeping.removal import check, remove
    from alphapo_cli.runtime.wording import size

    places = list(dict.fromkeys(Path(directory).expanduser().absolute() for directory in directories))
    kinds = {place: check(place) for place in places}
    inside = next((place for place in places if any(other in place.parents for other in places)), None)
    if inside is not None:
        raise UsageError(f"{inside}: lies in another directory that is to be removed; leave it out")
    for place, kind in kinds.items():
        entry = describe(place, kind)
        outcome = f", {entry.outcome}" if entry.outcome else ""
        say(f"{kind} {place}: {entry.state}{outcome}, {size(entry.size)}", file=sys.stderr)
    if not agreed(f"Remove {'it' if len(kinds) == 1 else f'these {len(kinds)}'} for good?", yes=yes):
        say("nothing removed")
        return
    for place, kind in kinds.items():
        try:
            remove(place, kind)
        except OSError as error:
            raise UsageError(f"{place}: cannot be removed ({error.strerror or error})") from error
        say(f"removed {place}")
    next_step("alphapo ls", "what is left")
    next_step("alphapo clean", "what the cache holds")


def agreed(question: str, *, yes: bool) -> bool:
    """Ask the user on the terminal.

    Args:
        question: what to ask.
        yes: whether the command line has agreed already.

    Returns:
        True where the answer begins with y.

    Raises:
        UsageError: there is no terminal to ask on, and the command line has not agreed.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nobody to ask: the input is no terminal; type --yes to agree")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower().startswith("y")

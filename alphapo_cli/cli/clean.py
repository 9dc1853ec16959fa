"""`alphapo clean`."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from alphapo_cli.cli.common import next_step, print_list
from alphapo_cli.cli.rm import Yes, agreed
from alphapo_cli.errors import UsageError, say

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"": 86400.0, "d": 86400.0, "h": 3600.0, "w": 7 * 86400.0}


# What the folders of the cache hold.
_HOLDS = {
    "base": "the embedded world's model before training",
    "hashes": "hashes of weights and models",
    "reference": "log-probs of references",
    "scores": "numbers of scorers and judges",
    "tokens": "token ids of data",
}


def register(app: typer.Typer) -> None:
    """Add `alphapo clean` to the application."""
    app.command(short_help="What the cache holds, and removing of old entries.")(clean)


def clean(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Remove what is older: 30 or 30d, 12h, 4w.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="SIZE", help="Remove the oldest until the rest fits: 500M, 20G, 0.")
    ] = None,
    yes: Yes = False,
) -> None:
    """What the cache holds; with --older-than or --keep remove entries, after asking. All of it is made again when needed.

    The cache (ALPHAPO_CACHE, by default ~/.cache/alphapo) holds the embedded world's base model, token ids, log-probs
    of references and hashes of weights. Entries of the last hour stay. Runs are no part of it: alphapo rm.

    \b
    Examples:
      alphapo clean
      alphapo clean --older-than 30d
      alphapo clean --keep 10G --yes
    \f

    Raises:
        UsageError: an age or a size cannot be read, or an entry cannot be removed.
    """
    from alphapo_cli.cli.housekeeping.cache import chosen, entries, remove
    from alphapo_cli.runtime.wording import duration, size
    from alphapo_cli.storage.paths import cache_dir

    age = None if older_than is None else _number(older_than, _TIMES, "--older-than", "30d, 12h or 4w")
    room = None if keep is None else _number(keep, _UNITS, "--keep", "500M or 20G")
    folder = cache_dir()
    found = entries(folder)
    kinds = {kind: [e for e in found if e.kind == kind] for kind in sorted({e.kind for e in found})}
    rows = [
        [
            kind,
            _HOLDS.get(kind, "of another version"),
            f"{len(those):,}",
            size(sum(e.size for e in those)),
            duration(those[0].age),
            duration(those[-1].age),
        ]
        for kind, those in kinds.items()
    ]
    say(f"{folder}: {len(found):,} entries, {size(sum(e.size for e in found))}")
    print_list(
        ["folder", "what it holds", "entries", "size", "oldest", "newest"],
        rows,
        right=("entries", "size", "oldest", "newest"),
    )
    going = chosen(found, age, room)
    if age is None and room is None:
        next_step("alphapo clean --older-than 30d", "removes what is older")
        next_step("alphapo clean --keep 10G", "removes the oldest until the rest fits")
        return
    total = size(sum(e.size for e in going))
    say(f"to be removed: {len(going):,} entries, {total}")
    if not going or not agreed("Remove them?", yes=yes):
        print("nothing removed")
        return
    for entry in going:
        try:
            remove(entry)
        except OSError as error:
            raise UsageError(f"{entry.path}: cannot be removed ({error.strerror or error})") from error
    say(f"removed {len(going):,} entries, {total}", file=sys.stderr)


def _number(text: str, units: dict[str, float] | dict[str, int], option: str, example: str) -> float:
    """A number with a unit; raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]?)(?:i?B)?", text.strip())
    known = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in known:
        raise UsageError(f"{option} {text}: cannot be read; write {example}")
    return float(match[1]) * known[match[2].lower()]

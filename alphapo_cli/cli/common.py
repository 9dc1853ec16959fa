"""Option types and helpers that the commands share."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alphapo_cli.errors import UsageError, say, visible

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDES", help="Hydra overrides: group=choice or key=value.", show_default=False),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="A folder of your own YAML, searched before the shipped conf/.")
]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="Settings as --print-config prints them, or some of them; overrides win over it.",
    ),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration and exit.")]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result object to FILE, or as the last line on stdout."),
]
StripThink = Annotated[
    bool, typer.Option("--strip-think", help="Remove thoughts (<think> and the like) from the answers of both sides.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Start over: discard what the directory holds.")]


def sources(config_dir: Path | None) -> Any:
    """The directories of YAML files.

    Args:
        config_dir: the user's --config-dir, None for none.

    Returns:
        A `config.overrides.Sources`.

    Raises:
        UsageError: `config_dir` is not a directory.
    """
    from alphapo_cli.config.overrides import Sources

    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such directory")
    return Sources(config_dir.resolve() if config_dir else None)


def stripping(strip_think: bool) -> list[str]:
    """The override that --strip-think stands for."""
    return ["strip_think=true"] if strip_think else []


def is_main_process() -> bool:
    """Whether this is rank 0 of torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def announce(path: Path) -> None:
    """Print the directory of the results, the first line on stdout."""
    if is_main_process():
        say(path.resolve(), flush=True)


def emit(result: dict[str, Any], target: str | None) -> None:
    """Write the result object to the target of `--json`: a file, or "-" for stdout."""
    if target is None or not is_main_process():
        return
    if target == "-":
        print(json.dumps(result, allow_nan=False), flush=True)
        return
    from alphapo_cli.storage.atomic import is_stream, write_json

    if is_stream(Path(target)):
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(result, allow_nan=False) + "\n")
        return
    write_json(target, result)


def warn(text: str) -> None:
    """Print a one-line warning to stderr."""
    say(f"alphapo: warning: {text}", file=sys.stderr, flush=True)


def print_table(table: Any) -> None:
    """Print a rich table to stderr, 120 columns wide where that is a pipe, which has no width."""
    from rich.console import Console

    console = Console(stderr=True)
    (console if console.is_terminal else Console(stderr=True, width=120)).print(table)


def print_list(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print a list on stdout, as wide as the terminal; a pipe, which has no width of its own, gets whole cells.

    Args:
        columns: their headings.
        rows: the cells of each line, one for each column.
        right: columns that are aligned to the right.
    """
    from rich.console import Console

    from alphapo_cli.runtime.tables import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    lines = [[visible(cell) for cell in row] for row in rows]
    for line in lines:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        widths = (max(len(cell) for cell in column) + 2 for column in zip(columns, *lines, strict=True))
        console = Console(width=max(80, sum(widths)))
    if lines:
        with console.capture() as captured:
            console.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def shortened(text: str, width: int = 240, *, keep_end: bool = False) -> str:
    """A text on one line of at most `width` characters, of which the beginning, or the end, is kept."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return f"...{line[3 - width :]}" if keep_end else f"{line[: width - 3]}..."


def typed_again(without: str | None = None, adding: str | None = None) -> str:
    """The command line that runs now, to be typed once more.

    Args:
        without: an option that is left out.
        adding: an override that is put in place of those of its key.

    Returns:
        The line.
    """
    key = None if adding is None else adding.partition("=")[0] + "="
    words = [w for w in sys.argv[1:] if w != without and not (key and w.startswith(key))]
    return f"alphapo {shlex.join([*words, *([adding] if adding else [])])}"


def next_step(line: str, why: str = "") -> None:
    """Print to stderr what can be done next, the last line of a command.

    Args:
        line: what can be typed; words in capitals stand for the user's own.
        why: what it does; it stands behind #, so that a shell takes all of it.
    """
    if is_main_process():
        say(f"next: {line}{f'  # {why}' if why else ''}", file=sys.stderr, flush=True)


def check_json_target(target: str | None) -> None:
    """Check, before any work, that the file of `--json` can be written.

    Raises:
        UsageError: the file cannot be written.
    """
    if target is not None and target != "-":
        from alphapo_cli.storage.atomic import check_file

        check_file(target, "--json")

"""What commands share: option types, the configuration sources, and the result object."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alphapo_cli.errors import UsageError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDES", help="Hydra overrides: group=choice or key=value.", show_default=False),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="A folder of your own YAML, searched before the shipped conf/.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration and exit.")]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write the result object to FILE, or as the last line on stdout."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Start over: discard what the directory holds.")]


def sources(config_dir: Path | None) -> Any:
    """Where YAML is looked for.

    Raises:
        UsageError: --config-dir is not a directory, or the current directory is gone.
    """
    from alphapo_cli.config.overrides import Sources

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current directory does not exist any more; cd to one that does") from error
    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such directory")
    return Sources(config_dir.resolve() if config_dir else None)


def is_main_process() -> bool:
    """False in all but the first process of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def announce(path: Path) -> None:
    """The first line on stdout: where results go."""
    if is_main_process():
        print(path.resolve(), flush=True)


def emit(result: dict[str, Any], target: str | None) -> None:
    """Write the result object where `--json` says."""
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
    """One line on stderr about something that does not stop the command."""
    print(f"alphapo: warning: {text}", file=sys.stderr, flush=True)


def print_table(table: Any) -> None:
    """A rich table on stderr; a pipe, which has no width of its own, gets 120 columns."""
    from rich.console import Console

    console = Console(stderr=True)
    (console if console.is_terminal else Console(stderr=True, width=120)).print(table)


def check_json_target(target: str | None) -> None:
    """Find out before any work that FILE can be written.

    Raises:
        UsageError: it cannot.
    """
    if target is not None and target != "-":
        from alphapo_cli.storage.atomic import check_file

        check_file(target, "--json")

"""`alphapo export`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, announce, check_json_target, emit, next_step
from alphapo_cli.errors import UsageError, nearest, say
from alphapo_cli.runtime.quiet import quiet_libraries

DTYPES = ("float32", "bfloat16", "float16")


def register(app: typer.Typer) -> None:
    """Add `alphapo export` to the application."""
    app.command(short_help="Write a trained model for others, with a model card.")(export)


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run directory, or a saved model's or adapter's.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where to write; a folder that is new or empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base model.")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help=f"{', '.join(DTYPES)}; default: as it is.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="For the card, by the hub's names: apache-2.0, ...")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's folder.")
    ] = False,
    json: Json = None,
) -> None:
    """Write a trained model for others: weights, tokenizer, and a model card with recipe, data, curve, outcome and limits.

    \b
    Examples:
      alphapo export runs/alphapo-1a2b3c4d --to my-model --license apache-2.0
      alphapo export runs/dpo-5e6f7a8b --to merged --merge --dtype bfloat16
    \f

    Raises:
        UsageError: the model cannot be exported so.
    """
    from alphapo_cli.stages.paths import check_model

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: no such dtype{nearest(dtype, DTYPES)} (choices: {', '.join(DTYPES)})")
    if licence is not None and re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", licence) is None:
        raise UsageError(f"--license {licence}: not a name of the hub's; write apache-2.0, mit, llama3.1, other, ...")
    check_json_target(json)
    check_model(model, key="MODEL")
    quiet_libraries(importing=True)
    from alphapo_cli.stages.export import export as write
    from alphapo_cli.stages.export import next_lines

    to = to.expanduser()
    done = write(model, to, merge=merge, dtype=dtype, licence=licence, trust_remote_code=trust_remote_code)
    announce(to)
    say(f"{'adapter' if done.adapter else 'model'} in {done.dtype}{done.of_base}, with a card in README.md")
    emit({"path": str(to.resolve()), "adapter": done.adapter, "dtype": done.dtype, "base": done.base}, json)
    if done.note:
        say(f"note: {done.note}", file=sys.stderr)
    if licence is None:
        text = f"write its `license:` in {to / 'README.md'}, or take another --to and --license NAME"
        say(f"note: the card names no licence; {text}", file=sys.stderr)
    for line, why in next_lines(done):
        next_step(line, why)

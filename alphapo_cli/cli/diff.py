"""`alphapo diff`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from alphapo_cli.cli.common import Json, check_json_target, emit, next_step, print_list
from alphapo_cli.errors import say


def register(app: typer.Typer) -> None:
    """Add `alphapo diff` to the application."""
    app.command(short_help="What differs between two runs, sweeps or models.")(diff)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run, sweep, generation, evaluation or model directory.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same kind.")],
    json: Json = None,
) -> None:
    """What differs between two directories: configuration, data, versions, and the last values of the curves.

    \b
    Examples:
      alphapo diff runs/alphapo-1a2b3c4d runs/simpo-5e6f7a8b
      alphapo diff ./my-model runs/alphapo-1a2b3c4d/model --json -
    """
    from alphapo_cli.cli.housekeeping import difference_words
    from alphapo_cli.cli.housekeeping.differences import compare, words
    from alphapo_cli.runtime.wording import counted

    check_json_target(json)
    a, b = a.expanduser(), b.expanduser()
    kind, found, same = compare(a, b)
    if found and kind != "model":
        for path, beside in ((a, b), (b, a)):
            say(f"{_name(path, beside)}: {words(path, kind)}")
        print()
    rates = [difference_words.rates(path, kind) for path in (a, b)]
    for section, differing in found.items():
        known = rates if section == "results" else [{}, {}]
        rows = [
            [difference_words.named(key, kind, section)]
            + [of.get(key) or _text(value) for of, value in zip(known, both, strict=True)]
            for key, both in differing.items()
            if section != "results" or not difference_words.is_said_elsewhere(key)
        ]
        print_list([section, _name(a, b), _name(b, a)], rows)
        print()
    count = sum(map(len, found.values()))
    things = {"generation": "generations", "evaluation": "evaluations"}.get(kind, f"{kind}s")
    print(
        f"{counted(count, 'difference')} between two {things}, {same} facts the same"
        if count
        else f"no difference: {same} facts"
    )
    sections = {s: {k: {"a": x, "b": y} for k, (x, y) in differing.items()} for s, differing in found.items()}
    emit({"a": str(a.resolve()), "b": str(b.resolve()), "kind": kind, "differences": sections, "same": same}, json)
    both = shlex.join([str(a), str(b)])
    if "results" in found and kind == "evaluation":
        next_step(f"alphapo compare {both}", "whether the win rates can be told apart")
    elif "results" in found and kind == "run":
        next_step("alphapo metrics KEY", "explains a figure")
    elif kind == "generation":
        next_step(f"alphapo eval {shlex.quote(str(a))} --reference {shlex.quote(str(b))}", "which answers are better")
    elif kind in ("run", "sweep"):
        next_step(f"alphapo report {both}", "their curves over one another")
    elif kind == "model":
        one, other = map(shlex.quote, (str(a), str(b)))
        next_step(
            f"alphapo measure {one} --start {other} data=jsonl data.path=PAIRS.jsonl", "how far one is from the other"
        )


def _text(value: Any) -> str:
    """A value in a cell; digests and long texts are cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    if digits := re.fullmatch(r"([0-9a-f]{40,64})(-dirty)?", text):
        return f"hash {digits[1][:12]}{digits[2] or ''}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(path: Path, other: Path) -> str:
    return path.name if path.name != other.name else str(path)

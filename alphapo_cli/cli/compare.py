"""`alphapo compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import Json, check_json_target, emit, next_step, print_table
from alphapo_cli.errors import say


def register(app: typer.Typer) -> None:
    """Add `alphapo compare` to the application."""
    app.command(short_help="Can two evaluated models be told apart?")(compare)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A directory of `alphapo eval`, or an annotations.json.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, against the same reference.")],
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Random signs of the permutation test.")
    ] = 10_000,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.9999, help="Of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random signs.")] = 0,
    json: Json = None,
) -> None:
    """Are two evaluated models distinguishable? Paired difference of the win rates, interval and permutation test.

    \b
    Examples:
      alphapo compare runs/eval-alphapo-1a2b3c4d runs/eval-simpo-5e6f7a8b
      alphapo compare results/a/annotations.json results/b/annotations.json.gz --json -
    """
    from dataclasses import asdict

    from alphapo_cli.evaluation.compare import compare as compare_annotations
    from alphapo_cli.evaluation.formats import read_annotations

    check_json_target(json)
    found = compare_annotations(
        read_annotations(a), read_annotations(b), resamples=resamples, confidence=confidence, seed=seed
    )

    from alphapo_cli.runtime.tables import Table
    from alphapo_cli.runtime.wording import per_cent

    table = Table(show_header=False)
    table.add_row(f"win rate of {found.a}", f"{found.win_rate_a:.2f} %, n = {found.n}")
    table.add_row(f"win rate of {found.b}", f"{found.win_rate_b:.2f} %, n = {found.n}")
    low, high = found.interval
    table.add_row(
        "difference",
        f"{found.difference:+.2f} points ({per_cent(found.confidence)} interval over instructions {low:+.2f} to {high:+.2f})",
    )
    table.add_row("paired test (score and random signs)", f"p {_p_value(found.p_value, resamples)}")
    left_out = f", {found.left_out} left out (judged in one only)" if found.left_out else ""
    table.add_row("instructions", f"{found.n}: {found.a} better on {found.better}, worse on {found.worse}{left_out}")
    print_table(table)
    say(found.sentence, flush=True)  # ahead of what goes to stderr: a terminal ends with what to do next
    say(f"verdict: {found.verdict['sentence']}", file=sys.stderr)
    if found.same_answers:
        next_step("alphapo compare EVAL-A EVAL-B", "evaluations of two models: here both hold one set of answers")
    elif found.distinguishable:
        next_step("alphapo report RUN-A RUN-B", "the directories of their trainings: where the curves part")
    else:
        next_step(
            "alphapo generate RUN data=jsonl data.path=MORE.jsonl",
            "more prompts narrow the intervals; then eval and compare",
        )
    emit(asdict(found), json)


def _p_value(p: float, resamples: int) -> str:
    """A p-value of `resamples` random signs, which cannot tell smaller ones from its least, 1 / (resamples + 1)."""
    least = 1 / (resamples + 1)
    return f"<= {least:.2g}, the least of {resamples:,} random signs" if p <= least * (1 + 1e-9) else f"= {p:.3g}"

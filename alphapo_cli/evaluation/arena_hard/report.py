"""Arena-Hard's results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.evaluation.output_check import notes_of
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.wording import per_cent

_AT = {"equal": "at equal style", "mean": "at the mean style difference, as the public tool takes it"}


def results_table(results: Mapping[str, Any]) -> Table:
    """Both scores with intervals, verdicts, what the order of the answers did, and what is missing."""
    table = Table(
        title=f"Arena-Hard: {results['generator']} against {results['reference']}, judged by {results['annotator']}",
        title_justify="left",
        show_header=False,
    )
    level = f"{per_cent(results['confidence'])} interval over prompts"
    table.add_row("score", _rate(results["arena_hard/score"], results["arena_hard/ci"], level))
    style = results["arena_hard/style"]
    if style["available"]:
        value, bounds = results["arena_hard/style_controlled_score"], results["arena_hard/style_controlled_ci"]
        table.add_row("style-controlled score", f"{_rate(value, bounds, level)}, {_AT[style['at']]}")
        other = "mean" if style["at"] == "equal" else "equal"
        rate = _rate(style[f"score_at_{other}_style"], style[f"ci_at_{other}_style"], level)
        table.add_row("", f"{rate}, {_AT[other]}")
        coefficients = ", ".join(f"{name} {value:+.2f}" for name, value in style["coefficients"].items())
        table.add_row("style coefficients", f"{coefficients} (length in {style['length_in']})")
        if style["constant"]:
            table.add_row("", f"{', '.join(style['constant'])}: the same difference everywhere, not controlled for")
        if style["ridge"]:
            table.add_row("", "a style occurs only where one side won; a small ridge holds its coefficient")
        if style["resamples_without_fit"]:
            table.add_row(
                "", f"{style['resamples_without_fit']} resamples without a finite fit are not in its interval"
            )
    else:
        table.add_row("style-controlled score", f"unavailable ({style['reason']})")
    verdicts = results["arena_hard/verdicts"]
    for odd in notes_of(results):
        table.add_row("", odd)
    table.add_row("verdicts", ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in verdicts.items()))
    table.add_row("win rate", f"{_rate(results['win_rate'], results['win_rate_interval'], level)}, every verdict once")
    for note in _left_out(results):
        table.add_row("", note)
    if results["arena_hard/inconsistent"] is not None:
        table.add_row(
            "order of the answers",
            f"{results['arena_hard/inconsistent']:.1%} of pairs with another winner in the other order, "
            f"{results['arena_hard/reversed']:.1%} reversed; the first shown wins {results['arena_hard/first_shown_share']:.1%}",
        )
    for name, row in results["arena_hard/by_category"].items():
        shown = "no verdict" if row["score"] is None else _rate(row["score"], row["ci"], level)
        table.add_row(f"  {name or 'no category'}", f"{shown} of {row['n']}")
    table.add_row("average length", f"{results['avg_length']} characters")
    judging = results.get("judging")
    if judging:
        cost = "price unknown" if judging["cost_usd"] is None else f"{judging['cost_usd']:.4f} USD"
        same = f", {judging['same_answers']} pairs of equal answers not asked" if judging["same_answers"] else ""
        table.add_row("judging", f"{judging['requests']} requests, {judging['tokens']:,} tokens, {cost}{same}")
    return table


def _rate(value: float, bounds: tuple[float, float] | None, level: str) -> str:
    return f"{value:.2f} %" + (f" ({level} {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")


def _left_out(results: Mapping[str, Any]) -> list[str]:
    notes = []
    if results["n_null"]:
        rule = "at least one" if results["statistics"]["version"] == "v2.0" else "both"
        notes.append(f"{results['n_null']} pairs lack {rule} of their verdicts and count for nothing")
    if results["n_not_judged"]:
        notes.append(f"{results['n_not_judged']} answers are not in the judgements")
    if results["n_outputs"] < results["n_reference"]:
        notes.append(f"answers to {results['n_outputs']} of the reference's {results['n_reference']} questions")
    return notes

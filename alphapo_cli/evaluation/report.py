"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.evaluation.output_check import notes_of
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.wording import per_cent


def results_table(results: Mapping[str, Any]) -> Table:
    """Both win rates with intervals, counts, and one row per length bin."""
    table = Table(
        title=f"{results['generator']} against {results['reference']}, judged by {results['annotator']}",
        title_justify="left",
        show_header=False,
    )
    # "over" is not in evaluations of earlier versions, whose intervals are a bootstrap's, over instructions as well.
    level = f"{per_cent(results['confidence'])} interval over {results.get('intervals_over', 'instructions')}"
    error = f", standard error {results['standard_error']:.2f}" if results["standard_error"] else ""
    table.add_row("win rate", f"{_rate(results, 'win_rate', level)}{error}, n = {results['n_total']}")
    control = results["length_controlled"]
    if control["available"]:
        rate = _rate(results, "length_controlled_winrate", level)
        extra = f", C {control['c']:.3g}, difficulty by {control['difficulty_by']}" if "c" in control else ""
        table.add_row("length-controlled win rate", rate + extra)
        if results.get("lc_bootstrap_error"):
            table.add_row("  its standard error", _lc_errors(results))
    else:
        table.add_row("length-controlled win rate", f"unavailable ({control['reason']})")
    for note in notes_of(results):
        table.add_row("", note)
    whole = f"{results['discrete_win_rate']:.2f} %, n = {results['n_total']}; every verdict counted whole"
    table.add_row("discrete win rate", whole)
    counts = (
        f"{results['n_wins']} wins, {results['n_wins_base']} losses, {results['n_draws']} draws of {results['n_total']}"
    )
    table.add_row("counts", counts)
    for note in _left_out(results):
        table.add_row("", note)
    table.add_row("average length", f"{results['avg_length']} characters")
    if results["length_bins"]:
        table.add_row("win rate by length", "of answers so much longer (+) or shorter (-) than the reference's")
    for b in results["length_bins"]:
        label = f"  {b['shortest']:+,d} to {b['longest']:+,d} characters"
        bounds = b.get("interval")
        shown = f" ({bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else ""
        table.add_row(label, f"{b['win_rate']:.1f} % of {b['n']}{shown}")
    if "true_win_rate" in results:
        rewards = f"{results['true_reward']:.3f} against {results['true_reward_reference']:.3f}"
        table.add_row("mean true reward", rewards)
    judging = results.get("judging")
    if judging:
        cost = "price unknown" if judging["cost_usd"] is None else f"{judging['cost_usd']:.4f} USD"
        mass = judging.get("verdict_mass") or {}
        if mass.get("median") is not None:
            table.add_row("probability of a verdict", mass_in_words(mass))
        table.add_row("judging", f"{judging['requests']} requests, {judging['tokens']:,} tokens, {cost}")
    return table


def mass_in_words(figures: Mapping[str, Any]) -> str:
    """The probability that the judge's first token is a verdict, over all answers."""
    below = f"{figures['share_below_half']:.1%} below one half"
    return f"median {figures['median']:.3f}, lowest {figures['lowest']:.3f}, {below}"


def _rate(results: Mapping[str, Any], key: str, level: str) -> str:
    bounds = results[f"{key}_interval"]
    return f"{results[key]:.2f} %" + (f" ({level} {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")


def _lc_errors(results: Mapping[str, Any]) -> str:
    """Both errors of the length-controlled rate: AlpacaEval's column takes the fitted model for exact."""
    column = results["lc_standard_error"]
    theirs = "" if column is None else f" (AlpacaEval's column, without the error of the fit: {column:.2f})"
    return f"{results['lc_bootstrap_error']:.2f} by bootstrap{theirs}"


def _left_out(results: Mapping[str, Any]) -> list[str]:
    notes = []
    if results["n_draws"] == results["n_total"]:
        notes.append("every row is a draw")
    if results["n_null"]:
        notes.append(f"{results['n_null']} rows have no judgement and count for nothing")
    if results["n_not_judged"]:
        notes.append(f"{results['n_not_judged']} outputs are not in the annotations")
    if results["n_outputs"] < results["n_reference"]:
        notes.append(f"outputs for {results['n_outputs']} of the reference's {results['n_reference']} instructions")
    return notes

"""The tables of numbers on the pages: a row for each point, with sort keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphapo_cli.report.collect import Sweep
from alphapo_cli.runtime.wording import rate
from alphapo_cli.sweep.intervals import Estimate
from alphapo_cli.tracking import metrics as catalog

SHARE = "share of the held-out pairs"
# Columns of the table of numbers: metric, heading, format.
COLUMNS = (
    ("displacement/chosen", "chosen", "+.3f"),
    ("displacement/rejected", "rejected", "+.3f"),
    ("displacement/share_chosen_down", "chosen down", SHARE),
    ("rewards/margins", "margin", ".3g"),
    ("rewards/accuracies", "accuracy", SHARE),
    ("glassbox/true_reward", "true reward", ".2f"),
    ("kl/reference", "KL", ".3f"),
    ("entropy/chosen", "entropy", ".2f"),
    ("glassbox/length", "length", ".1f"),
    ("shape/slope", "mean h′", ".3g"),
)
OUTCOMES = {
    "eval/win_rate": "Win rate by the judge",
    "glassbox/true_win_rate": "True win rate",
    "rewards/accuracies": "Held-out accuracy",
}


@dataclass(frozen=True)
class Entry:
    """One field of the table of points; `value` is its sort key."""

    text: str
    value: str = ""
    extra: str = ""


def numbers(sweep: Sweep) -> dict[str, Any]:
    """The table of points.

    Args:
        sweep: the sweep.

    Returns:
        `heads`: name and explanation of every column; `rows`: point, label, sort key and one `Entry` for each column
        after the first.
    """
    analysis = sweep.analysis
    columns = [c for c in COLUMNS if any(p.mean(c[0]) is not None for p in sweep.points) and c[0] != analysis.metric]
    heads = [{"name": "point", "explained": ""}]
    if analysis.metric:
        own = f" With its own 95 % interval over {sweep.over}." if any(analysis.estimates) else ""
        explained = f"{catalog.explain(analysis.metric)}{own}"
        n = f", n = {analysis.prompts:,}" if analysis.prompts else ""
        heads.append({"name": f"{OUTCOMES[analysis.metric].lower()}{n}", "explained": explained})
    over_zero = any(a is not None for a in analysis.advantages)
    if over_zero:
        heads.append(
            {
                "name": "over alpha = 0",
                "explained": f"Advantage with a 95 % interval over {sweep.over} that holds for all points together",
            }
        )
    known = {cell.get("pairs") for point in sweep.points for cell in point.cells}
    pairs = next(iter(known)) if len(known) == 1 else None
    heads += [
        {"name": f"{name}, n = {pairs:,}" if pairs and form == SHARE else name, "explained": catalog.explain(key)}
        for key, name, form in columns
    ]
    clipped = any(p.clipped is not None for p in sweep.points)
    if clipped:
        heads.append({"name": "clipped", "explained": "Share of logged steps whose gradient was clipped"})
    heads.append({"name": "complete", "explained": "Cells that are complete, of all seeds"})
    rows = []
    for k, point in enumerate(sweep.points):
        cells = []
        if analysis.metric:
            cells.append(_share(point.mean(analysis.metric), analysis.estimates[k]))
        if over_zero:
            gain = analysis.advantages[k]
            cells.append(_points(gain))
        cells += [entry(point.mean(key), form) for key, _, form in columns]
        if clipped:
            cells.append(Entry("–") if point.clipped is None else Entry(rate(point.clipped, None), repr(point.clipped)))
        cells.append(Entry(f"{len(point.cells)} of {len(point.members)}"))
        order = point.alpha if point.alpha is not None else k
        rows.append({"point": k, "label": titled(point.label), "order": order, "cells": cells})
    return {"heads": heads, "rows": rows}


def units(sweep: Sweep) -> str:
    """Name the units of the table's columns, in a sentence; those without one are shares or counts."""
    by_unit: dict[str, list[str]] = {}
    for key, name, _ in COLUMNS:
        unit = catalog.lookup(key).unit
        if unit and any(point.mean(key) is not None for point in sweep.points):
            by_unit.setdefault(unit, []).append(name)
    return "; ".join(f"{', '.join(names)}: {unit}" for unit, names in by_unit.items())


def entry(value: float | None, form: str, pairs: float | None = None) -> Entry:
    """A field of the table.

    Args:
        value: the figure.
        form: its format, or `SHARE`.
        pairs: of a share of one training: how many it is of; None for a mean over several, and where that is not known.

    Returns:
        The field; a dash where there is no value.
    """
    if value is None:
        return Entry("–")
    if form == SHARE:
        share, _, rest = rate(value, pairs).partition(" % ")
        return Entry(f"{share} %" if rest else rate(value, pairs), repr(value), rest)
    return Entry(minus(format(value, form)), repr(value))


def _share(value: float | None, estimate: Estimate | None) -> Entry:
    """A field with a share and its interval, in per cent."""
    if value is None:
        return Entry("–")
    low_high = "" if estimate is None else f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    return Entry(f"{100 * value:.0f} %", repr(value), low_high)


def _points(gain: Estimate | None) -> Entry:
    """A field with a difference of shares and its interval, in percentage points."""
    if gain is None:
        return Entry("–")
    value, low, high = (minus(f"{100 * x:+.0f}") for x in (gain.value, gain.low, gain.high))
    return Entry(f"{value} points", repr(gain.value), f"[{low}, {high}]")


def titled(label: str) -> str:
    """A point's label for display: "alpha = −1"."""
    return label.replace("=", " = ").replace("= -", "= −")


def minus(text: str) -> str:
    """The text with true minus signs."""
    return text.replace("-", "−")

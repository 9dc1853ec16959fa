"""The figure of likelihood displacement against optimizer steps for all cells of a sweep, coloured by alpha."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import style
from alphapo_cli.plots.shape_data import RewardShape

LABELLED = 7  # values up to which every line is named at its end
_SIDES = (("displacement/chosen", "Chosen responses"), ("displacement/rejected", "Rejected responses"))


@dataclass(frozen=True)
class SweepCurve:
    """One cell of a sweep, for the figures.

    Cells with the same alpha, label and series differ by their seed alone and are averaged.
    """

    alpha: float | None  # None when the sweep is not over alpha
    label: str  # the swept value without the seed: "alpha=0.5", "dpo"
    rows: Sequence[Mapping[str, Any]] = ()  # of metrics.jsonl
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of summary.json
    state: str = "complete"
    series: str = ""  # a second swept key: "beta=2.5"; each gets its own line style
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # metric -> (low, high), 95 %
    over: str = ""  # what the intervals are over: "prompts", "prompts and seeds"
    counts: Mapping[str, int] = field(default_factory=dict)  # metric -> prompts or pairs that it is the mean over
    shape: RewardShape | None = None  # of its reward


def sweep_displacement(
    cells: Sequence[SweepCurve], path: str | os.PathLike[str], title: str | None = None, name: str = "alpha"
) -> None:
    """Save `displacement_figure` as a PNG at `path`."""
    style.save(displacement_figure(cells, title, name), path)


def displacement_figure(cells: Sequence[SweepCurve], title: str | None = None, name: str = "alpha") -> Figure:
    """Draw displacement of the chosen and of the rejected responses against steps, in nats per token, on one scale.

    One thick line per value (the mean over its complete seeds, at steps that all of them have) and, where there are
    several seeds, one thin line for each. Up to `LABELLED` values are named where their lines end, and have a band from
    the 10th to the 90th percentile of the pairs. With alphas the colour is continuous and centred on 0; otherwise every
    label has a colour. A cell that failed ends in a cross.

    Args:
        cells: the cells of the sweep.
        title: the figure's title; None for the usual one.
        name: the swept key.

    Returns:
        A figure of two panels.
    """
    figure, axes = style.new_figure(
        1, 2, 3.7, title or f"Likelihood displacement during training, by {name}", sharey=True
    )
    groups = group_seeds(cells)
    labels = list(dict.fromkeys(cell.label for cell in cells))
    all_series = list(dict.fromkeys(cell.series for cell in cells))
    colour_of = value_colours(cells)
    few = len(groups) <= LABELLED
    all_ends: list[list[tuple[float, float, str, Any]]] = []
    for ax, (key, panel_title) in zip(axes, _SIDES, strict=True):
        ends: list[tuple[float, float, str, Any]] = []
        for group in groups:
            dash = style.DASHES[all_series.index(group[0].series) % len(style.DASHES)]
            colour = colour_of(group[0])
            if few:
                _draw_band(ax, group, key, colour)
            last = _draw_group(ax, group, key, colour, dash)
            if last is not None:
                ends.append((*last, " ".join(filter(None, (group[0].label, group[0].series))), colour))
        style.reference_line(ax, 0.0)
        band = f", band: 10-90 % of {_pairs(cells)}" if ax.collections else ""
        style.panel(
            ax,
            f"{panel_title}{band}",
            "log-prob since step 0, nats per token" if ax is axes[0] else "",
            "optimizer step",
        )
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        all_ends.append(ends)
    for ax, ends in zip(axes, all_ends, strict=True):  # when the scale that they share is known
        if few:
            style.label_ends(ax, ends)
    if not few and is_over_alpha(cells):
        style.colour_bar(figure, axes, [cell.alpha for cell in cells if cell.alpha is not None], name)
    elif not few:
        style.beside_or_below(figure, axes[1], _label_handles(labels, cells))
    handles = _series_handles(all_series) if len(all_series) > 1 else []
    if any(line.get_gid() == "failed" for ax in axes for line in ax.get_lines()):
        handles.append(Line2D([], [], color=style.INK, marker="x", linestyle="", label="failed here"))
    style.figure_legend(figure, handles)
    return figure


def _pairs(cells: Sequence[SweepCurve]) -> str:
    """What a band is over, with its number where all cells have the same."""
    known = {cell.counts[_SIDES[0][0]] for cell in cells if _SIDES[0][0] in cell.counts}
    return f"{next(iter(known)):,} pairs" if len(known) == 1 else "the pairs"


def value_colours(cells: Sequence[SweepCurve]) -> Callable[[SweepCurve], Any]:
    """The colour of a cell's value, as the pages have it: by alpha, else by a number's place in the order, else by label."""
    labels = list(dict.fromkeys(cell.label for cell in cells))
    if is_over_alpha(cells):
        norm = style.centred([cell.alpha for cell in cells if cell.alpha is not None])
        return lambda cell: style.DIVERGING(norm(cell.alpha or 0.0))
    if all(_is_number(label) for label in labels):
        last = max(len(labels) - 1, 1)
        return lambda cell: style.ORDERED(labels.index(cell.label) / last)
    return lambda cell: style.CATEGORIES[labels.index(cell.label) % len(style.CATEGORIES)]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def is_over_alpha(cells: Sequence[SweepCurve]) -> bool:
    """Whether every cell has an alpha, so that alpha can be an axis."""
    return bool(cells) and all(cell.alpha is not None for cell in cells)


def group_seeds(cells: Sequence[SweepCurve]) -> list[list[SweepCurve]]:
    """The cells that differ by their seed alone, in order of alpha, then of appearance."""
    groups: dict[tuple[float | None, str, str], list[SweepCurve]] = {}
    for cell in cells:
        groups.setdefault((cell.alpha, "" if cell.alpha is not None else cell.label, cell.series), []).append(cell)
    return sorted(groups.values(), key=lambda group: group[0].alpha if group[0].alpha is not None else 0.0)


def _draw_band(ax: Axes, group: Sequence[SweepCurve], key: str, colour: Any) -> None:
    """The middle 80 % of the pairs of one value, means over its complete seeds."""
    ends = []
    for end in ("p10", "p90"):
        curves = [dict(zip(*style.series(c.rows, f"{key}/{end}"), strict=True)) for c in group if c.state == "complete"]
        shared = set.intersection(*map(set, curves)) if curves else set()
        ends.append({step: sum(curve[step] for curve in curves) / len(curves) for step in shared})
    steps = sorted(ends[0].keys() & ends[1].keys())
    if steps:
        low, high = ([end[step] for step in steps] for end in ends)
        ax.fill_between(steps, low, high, color=colour, alpha=0.07, linewidth=0, gid="band")


def _draw_group(ax: Axes, group: Sequence[SweepCurve], key: str, colour: Any, dash: str) -> tuple[float, float] | None:
    """Curves of one value: of every seed, and their mean; where the mean ends, None without any."""
    curves = [(cell, *style.series(cell.rows, key)) for cell in group]
    several = len(curves) > 1
    for cell, steps, values in curves:
        failed = cell.state == "failed"
        if steps and (several or failed):
            ax.plot(steps, values, color=colour, linewidth=0.7, alpha=0.5, linestyle=dash, gid="seed")
        if steps and failed:
            ax.plot(steps[-1], values[-1], "x", color=colour, markersize=6, markeredgewidth=1.6, zorder=4, gid="failed")
    # A running seed would truncate the mean, so it counts only where no seed has ended.
    usable = [curve for curve in curves if curve[1] and curve[0].state != "failed"]
    whole = [
        dict(zip(steps, values, strict=True))
        for cell, steps, values in [curve for curve in usable if curve[0].state == "complete"] or usable
    ]
    if not whole:
        return None
    shared = sorted(set.intersection(*(set(curve) for curve in whole)))
    means = [sum(curve[step] for curve in whole) / len(whole) for step in shared]
    marker = "o" if len(shared) == 1 else None
    ax.plot(shared, means, color=colour, linewidth=1.9, linestyle=dash, marker=marker, markersize=4, gid="mean")
    return (shared[-1], means[-1]) if shared else None


def _label_handles(labels: Sequence[str], cells: Sequence[SweepCurve]) -> list[Line2D]:
    colour_of = value_colours(cells)
    first = {cell.label: cell for cell in reversed(cells)}
    return [Line2D([], [], color=colour_of(first[text]), linewidth=1.9, label=text) for text in labels]


def _series_handles(names: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=style.INK, linestyle=style.DASHES[i % len(style.DASHES)], label=text)
        for i, text in enumerate(names)
    ]

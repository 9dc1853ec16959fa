"""Further figures of a sweep's report: trajectories, quadrants, gradient weights, a metric over the swept value."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alphapo_cli.plots import colours, style
from alphapo_cli.plots.sweep_curves import SweepCurve, group_seeds, is_over_alpha, value_colours

Cells = Sequence[SweepCurve]
# Drawn from the middle outwards: chosen up to the right, chosen down to the left.
_QUADRANTS = (
    ("up_down", 1, colours.QUADRANTS["up_down"], "chosen up, rejected down"),
    ("up_up", 1, colours.QUADRANTS["up_up"], "both up"),
    ("down_down", -1, colours.QUADRANTS["down_down"], "both down"),
    ("down_up", -1, colours.QUADRANTS["down_up"], "chosen down, rejected up"),
)


def trajectory_figure(cells: Cells, name: str = "alpha") -> Figure:
    """Draw chosen displacement against reward margin, one path per value from step 0 (hollow) to the end (filled)."""
    figure, (ax,) = style.new_figure(1, 1, 4.2, f"Chosen displacement against reward margin, by {name}")
    groups = group_seeds(cells)
    drawn: list[float] = []
    for place, group in enumerate(groups):
        chosen, margins = (mean_curve(group, key) for key in ("displacement/chosen", "rewards/margins"))
        steps = sorted(chosen.keys() & margins.keys())
        if not steps:
            continue
        colour = colour_of(groups, place)
        xs, ys = [chosen[s] for s in steps], [margins[s] for s in steps]
        ax.plot(xs, ys, color=colour, linewidth=1.6, gid="path")
        ax.plot(xs[0], ys[0], "o", color=colour, markerfacecolor="white", markersize=3.5, gid="start")
        ax.plot(xs[-1], ys[-1], "o", color=colour, markersize=5, label=label_of(group), gid="end")
        drawn += ys
    ax.axvline(0.0, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    _log_if_wide(ax, drawn)
    style.panel(ax, "", "reward margin", "displacement of the chosen responses, nats per token")
    handles, _ = ax.get_legend_handles_labels()
    if len(handles) > style.MANY and is_over_alpha(cells):
        style.colour_bar(figure, [ax], [cell.alpha for cell in cells if cell.alpha is not None], name)
    else:
        style.beside_or_below(figure, ax, handles)
    return figure


def quadrant_figure(cells: Cells, name: str = "alpha") -> Figure:
    """Draw the shares of probe pairs per quadrant; to the left of 0 the chosen response became less likely."""
    key = "displacement/quadrant/{}".format
    rows = [g for g in group_seeds(cells) if all(ending(g, key(q)) is not None for q, *_ in _QUADRANTS)]
    height = 1.6 + 0.24 * max(len(rows), 4) if len(rows) <= 3 * style.MANY else 1.6 + 0.14 * len(rows)
    figure, (ax,) = style.new_figure(1, 1, height, f"Which way both responses went, by {name}")
    for y, group in enumerate(rows):
        ends = {1: 0.0, -1: 0.0}
        for quadrant, side, colour, _ in _QUADRANTS:
            share = ending(group, key(quadrant)) or 0.0
            ax.barh(y, side * share, left=ends[side], height=0.72, color=colour, gid=quadrant)
            ends[side] += side * share
    ax.set_yticks(range(len(rows)), [label_of(group) for group in rows])
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    ax.set_xlim(-1.02, 1.02)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["100 %", "50 %", "0", "50 %", "100 %"])
    ax.axvline(0.0, color=style.GREY, linewidth=0.8)
    ax.grid(visible=False)
    style.panel(ax, "", "", "chosen less likely     share of pairs     chosen more likely")
    style.figure_legend(figure, [Patch(color=colour, label=text) for _, _, colour, text in _QUADRANTS])
    return figure


def gradient_figure(cells: Cells, name: str = "alpha") -> Figure:
    """Draw |mean dL/ds| of both responses over the swept value: filled at the end of training, hollow at step 0."""
    figure, (ax,) = style.new_figure(1, 1, 3.8, f"Gradient weight by {name}")
    groups = group_seeds(cells)
    over_alpha = is_over_alpha(cells)
    drawn: list[float] = []
    for side, colour in (("chosen", style.CHOSEN), ("rejected", style.REJECTED)):
        key = f"gradient_weight/{side}"
        ends: list[tuple[float, float]] = []
        for place, group in enumerate(groups):
            x = group[0].alpha if over_alpha and group[0].alpha is not None else float(place)
            start, end = mean_curve(group, key).get(0.0), ending(group, key)
            if start is not None:
                ax.plot(x, abs(start), "o", color=colour, markerfacecolor="white", markersize=4, gid="start")
                drawn.append(abs(start))
            if end is not None:
                ends.append((x, abs(end)))
        if ends:
            ax.plot(*zip(*ends, strict=True), color=colour, linewidth=1.2 if over_alpha else 0, marker="o",
                    markersize=5, label=side, gid="end")  # fmt: skip
            drawn += [y for _, y in ends]
    if not _log_if_wide(ax, [y for y in drawn if y > 0]):
        ax.set_ylim(bottom=0)
    if not over_alpha:
        style.name_places(ax, [label_of(group) for group in groups])
    style.panel(ax, "", "size of the mean dL/ds", name if over_alpha else "")
    hollow = Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", linestyle="", label="at step 0")
    style.figure_legend(figure, [*ax.get_legend_handles_labels()[0], *([hollow] if drawn else [])])
    return figure


def ending_figure(cells: Cells, key: str, title: str, unit: str, name: str = "alpha") -> Figure:
    """Draw one metric at the end of training over the swept value: means over seeds, and a dash for each seed."""
    figure, (ax,) = style.new_figure(1, 1, 3.4, f"{title}, by {name}")
    groups = group_seeds(cells)
    over_alpha = is_over_alpha(cells)
    lines: dict[str, list[tuple[float, float]]] = {}
    for place, group in enumerate(groups):
        x = group[0].alpha if over_alpha and group[0].alpha is not None else float(place)
        values, colour = _endings(group, key), colour_of(groups, place)
        if not values:
            continue
        if len(values) > 1:
            ax.plot([x] * len(values), values, "_", color=colour, markersize=7, gid="seeds")
        ax.plot(x, fmean(values), "o", color=colour, markersize=5, gid="mean")
        lines.setdefault(group[0].series, []).append((x, fmean(values)))
    for line in lines.values() if over_alpha else ():
        ax.plot(*zip(*line, strict=True), color=style.GREY, linewidth=1.0, zorder=1.5)
    if not over_alpha:
        style.name_places(ax, [label_of(group) for group in groups])
    style.panel(ax, "", unit, name if over_alpha else "")
    return figure


def mean_curve(group: Cells, key: str) -> dict[float, float]:
    """Step -> mean of `key` over complete seeds, at steps that all have; else over those not failed."""
    known = [
        (c, curve)
        for c in group
        if c.state != "failed" and (curve := dict(zip(*style.series(c.rows, key), strict=True)))
    ]
    curves = [curve for c, curve in known if c.state == "complete"] or [curve for _, curve in known]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {step: fmean(curve[step] for curve in curves) for step in sorted(shared)}


def ending(group: Cells, key: str) -> float | None:
    """The mean over seeds of a metric's last value; None where there is none."""
    values = _endings(group, key)
    return fmean(values) if values else None


def _endings(group: Cells, key: str) -> list[float]:
    """Last values of a metric, of complete seeds; where none is complete, of those that have not failed."""
    known = [(c, v) for c in group if c.state != "failed" and (v := style.number(c.metrics.get(key))) is not None]
    return [v for c, v in known if c.state == "complete"] or [v for _, v in known]


def colour_of(groups: Sequence[Cells], place: int) -> Any:
    """The colour of a group, as in `displacement_figure`: by its alpha, or by its label."""
    cells = [cell for group in groups for cell in group]
    return value_colours(cells)(groups[place][0])


def label_of(group: Cells) -> str:
    """The label of a group, which its cells share."""
    return group[0].label


def _log_if_wide(ax: Axes, values: Sequence[float]) -> bool:
    """Make the y axis logarithmic where positive values span more than a factor of twenty; whether it is."""
    wide = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    if wide:
        ax.set_yscale("log")
    return wide

"""The figures of a sweep's reward shapes: a small panel for each value, with the pairs on its curve, or its field."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from alphapo_cli.plots import style
from alphapo_cli.plots.reward_shape import SIDES, SIZES, field_panel, log_if_wide, mark_means, scores_panel
from alphapo_cli.plots.shape_data import RewardShape, pooled
from alphapo_cli.plots.shape_marks import percent
from alphapo_cli.plots.sweep_curves import SweepCurve, group_seeds, is_over_alpha, value_colours

Cells = Sequence[SweepCurve]
_MOST = 16  # small panels
_SMALL = 7.0  # text size
_TOP, _OVERLAY, _ROW, _BOTTOM = 0.85, 2.3, 1.85, 1.15  # inches: title, panels over one another, a row, legend
_SIDEWAYS = {"left": 0.085, "right": 0.985, "wspace": 0.3}


def has_shapes(cells: Cells) -> bool:
    """Whether any cell has a shape to draw."""
    return any(cell.shape is not None for cell in cells)


def shapes_figure(cells: Cells, name: str = "alpha", subject: str = "") -> Figure:
    """Draw the shapes of all values over one another, the share of saturated answers, and a panel for each value.

    A small panel has the slope h'(s) over the scores that its pairs have, the mean scores on it, and the histograms of
    both sides' scores beneath.

    Args:
        cells: the cells of the sweep; those without a shape are left out.
        name: the swept key.
        subject: what is trained, for the title.

    Returns:
        A figure of up to `_MOST` values; its title counts those that are not drawn.
    """
    shown, words = _shown(cells, name)
    columns, rows = _grid(len(shown))
    alike = len({found.unit for _, found, _ in shown}) == 1  # else scores of one panel say nothing about another's
    tall = _ROW if alike else _ROW + 0.35
    high = _TOP + _OVERLAY + rows * tall + _BOTTOM
    title = _title(f"Reward shape by {name}", subject, words)
    figure, axes = style.new_figure(1, 1, high, title)
    axes[0].remove()
    figure.suptitle(style.plain(title), x=0.01, y=1 - 0.1 / high, ha="left", va="top", fontsize=style.TITLE_SIZE,
                    fontweight="bold", color=style.INK)  # fmt: skip
    figure.set_layout_engine("none")  # which would take most of the time with as many panels
    above = figure.add_gridspec(1, 3, top=1 - _TOP / high, bottom=1 - (_TOP + _OVERLAY - 0.75) / high, **_SIDEWAYS)
    _overlays([_styled(figure.add_subplot(above[i])) for i in range(3)], cells, name)
    low, high_score = (end(s.grid[k] for _, s, _ in shown) for end, k in ((min, 0), (max, -1)))
    slopes = np.concatenate([one for _, s, _ in shown for one in (s.slope, s.slope_start) if one is not None])
    for place, (label, found, colour) in enumerate(shown):
        row, column = divmod(place, columns)
        top = _TOP + _OVERLAY + row * tall
        inside = figure.add_gridspec(2, columns, height_ratios=(1.2, 1.0), hspace=0.32, top=1 - (top + 0.22) / high,
                                     bottom=1 - (top + _ROW - 0.12) / high, left=0.065, right=0.985, wspace=0.24)  # fmt: skip
        pair = [_styled(figure.add_subplot(inside[k, column])) for k in (0, 1)]
        _small(pair, found, label, colour)
        for ax in pair:
            ax.set_xlim(*((low, high_score) if alike else found.grid[[0, -1]]))
        log_if_wide(pair[0], slopes)
        if pair[0].get_yscale() == "linear":
            pair[0].set_ylim(0.0, 1.12 * float(np.nanmax(slopes)) or 1.0)
        last = not alike or place + columns >= len(shown)
        pair[0].tick_params(labelbottom=False, labelleft=column == 0)
        pair[1].tick_params(labelbottom=last)
        if last:
            pair[1].set_xlabel(f"score s, {found.unit}", fontsize=_SMALL, color=style.INK)
        if column == 0:
            pair[0].set_ylabel("h'(s)", fontsize=_SMALL, color=style.INK)
            pair[1].set_ylabel("answers", fontsize=_SMALL, color=style.INK)
    style.figure_legend(figure, _handles(shown), columns=3)
    return figure


def fields_figure(cells: Cells, name: str = "alpha", subject: str = "") -> Figure:
    """Draw the gradient field by the scores of each value, with the path of the probe's mean scores through it.

    Args:
        cells: the cells of the sweep; those without a shape are left out.
        name: the swept key.
        subject: what is trained, for the title.

    Returns:
        A figure of up to `_MOST` values; its title counts those that are not drawn.
    """
    shown, words = _shown(cells, name)
    columns, rows = _grid(len(shown))
    title = _title(f"Gradient field and the path of the mean scores by {name}", subject, words)
    figure, axes = style.new_figure(rows, columns, 1.2 + 8.6 / columns * rows, title)
    for place, ax in enumerate(axes):
        if place >= len(shown):
            ax.remove()
            continue
        label, found, colour = shown[place]
        field_panel(ax, found, colour)
        ax.tick_params(labelsize=_SMALL)
        last = place + columns >= len(shown)
        style.panel(ax, "", "rejected score" if place % columns == 0 else "", "chosen score" if last else "")
        ax.set_title(label, fontsize=style.PANEL_SIZE, loc="left", color=colour, fontweight="bold")
    style.figure_legend(figure, [
        Line2D([], [], color=SIZES(0.75), marker=r"$\rightarrow$", linestyle="", markersize=9,
               label="where a step down the loss leads, the darker the steeper within a panel"),
        Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", markersize=5,
               label="mean scores of the held-out pairs, from step 0 (open) to the end"),
        Line2D([], [], color=style.GREY, linestyle="--", linewidth=0.8, label="equal scores"),
    ], columns=2)  # fmt: skip
    return figure


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of the small panels: few are left empty."""
    if count <= 4:
        return max(count, 2), 1
    columns = min((4, 5), key=lambda c: (math.ceil(count / c), c))
    return columns, math.ceil(count / columns)


def _title(title: str, subject: str, words: str) -> str:
    lines = textwrap.wrap(f"{title}{words}{': ' if subject else ''}{subject}".replace(" = ", "\u00a0=\u00a0"), 86)
    return "\n".join(lines)


def _shown(cells: Cells, name: str) -> tuple[list[tuple[str, RewardShape, Any]], str]:
    """Label, shape and colour of each value, at most `_MOST`, and what the title adds of those left out."""
    colour_of = value_colours(cells)
    found = []
    for group in group_seeds(cells):
        shapes = _of_seeds(group)
        if shapes:
            named = f"{name} {group[0].label}" if group[0].alpha is not None else group[0].label
            label = " ".join(filter(None, (named, group[0].series))).replace("-", "\u2212")
            found.append((label, pooled(shapes), colour_of(group[0])))
    if len(found) <= _MOST:
        return found, ""
    kept = np.linspace(0, len(found) - 1, _MOST).round().astype(int)
    return [found[i] for i in kept], f", {_MOST} of {len(found)} values"


def _of_seeds(group: Cells) -> list[RewardShape]:
    """Shapes of complete seeds; where none is complete, of those that have not failed."""
    known = [cell for cell in group if cell.shape is not None and cell.state != "failed"]
    chosen = [cell for cell in known if cell.state == "complete"] or known
    return [cell.shape for cell in chosen if cell.shape is not None]


def _overlays(axes: Sequence[Axes], cells: Cells, name: str) -> None:
    """All shapes, all slopes, and the share of saturated answers over the swept value."""
    groups = [(group, _of_seeds(group)) for group in group_seeds(cells)]
    known = [(group[0], pooled(shapes)) for group, shapes in groups if shapes]
    colour_of = value_colours(cells)
    for cell, found in known:
        for ax, values in ((axes[0], found.shape), (axes[1], found.slope)):
            ax.plot(found.grid, values, color=colour_of(cell), linewidth=1.5, gid="curve")
    every = np.concatenate([found.shape for _, found in known])
    if np.nanmax(np.abs(every)) > 20:
        axes[0].set_yscale("asinh", linear_width=1.0)  # smooth, where a linear part would end in a kink
        powers = [10.0**k for k in range(math.ceil(math.log10(np.nanmax(np.abs(every)))) + 1)]
        axes[0].yaxis.set_major_locator(FixedLocator([-p for p in powers] + [0.0] + powers))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}")))
        axes[0].minorticks_off()
    log_if_wide(axes[1], np.concatenate([found.slope for _, found in known]))
    units = {found.unit for _, found in known}
    unit = f"score s, {units.pop()}" if len(units) == 1 else "score s, each in its own unit"
    style.panel(axes[0], "Shape h(s)", "", unit)
    style.panel(axes[1], "Slope h'(s)", "", unit)
    over_alpha = is_over_alpha(cells)
    for side, _, colour in SIDES:
        for end, filled in ((0, False), (-1, True)):
            places = [
                cell.alpha if over_alpha and cell.alpha is not None else float(i) for i, (cell, _) in enumerate(known)
            ]
            line = [(x, f.saturated[side, end]) for x, (_, f) in zip(places, known, strict=True) if f.limit is not None]
            if line:
                axes[2].plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4 if filled else 3.5,
                             markerfacecolor=colour if filled else "white", linestyle="-" if filled else "--",
                             linewidth=1.2 if over_alpha else 0, gid="end" if filled else "start")  # fmt: skip
    if not axes[2].has_data():
        axes[2].text(0.5, 0.5, "not defined", transform=axes[2].transAxes, ha="center", color=style.GREY, fontsize=8)
    axes[2].set_ylim(-0.03, 1.03)
    style.panel(axes[2], "Saturated answers", "share", name if over_alpha else "")
    if not over_alpha:
        style.name_places(axes[2], [cell.label for cell, _ in known])


def _small(pair: Sequence[Axes], found: RewardShape, label: str, colour: Any) -> None:
    """The slope of one value above, the scores of its pairs beneath."""
    curve, scores = pair
    curve.plot(found.grid, found.slope, color=colour, linewidth=1.6, zorder=2, gid="curve")
    mark_means(curve, found, found.slope, found.slope_start, colour)
    curve.set_title(label, fontsize=style.PANEL_SIZE, loc="left", color=colour, fontweight="bold", pad=3)
    scores_panel(scores, found, named=False)
    for ax in pair:
        ax.tick_params(labelsize=_SMALL)
    for side, _, tone in SIDES:
        weight, share = found.weights[side, -1], found.saturated[side, -1]
        if np.isfinite(weight):
            text = f"{abs(weight):.2g}" + (f", {percent(share)}" if np.isfinite(share) else "")
            scores.text(side, 1.02, text, transform=scores.transAxes, ha=("left", "right")[side], va="bottom",
                        color=tone, fontsize=_SMALL, gid="numbers")  # fmt: skip


def _handles(shown: Sequence[tuple[str, RewardShape, Any]]) -> list[Any]:
    handles: list[Any] = [
        Patch(color=colour, alpha=0.5, linewidth=0, label=f"{side} answers") for _, side, colour in SIDES
    ]
    handles.append(Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", linestyle="--", markersize=5,
                          linewidth=1.0, label="at step 0 (filled: at the end)"))  # fmt: skip
    words = "numbers: mean gradient weight at the end"
    if any(found.limit is not None for _, found, _ in shown):
        words += ", and the share below 1 % of the weight at scores of 0: saturated"
    handles.append(Line2D([], [], linestyle="", label=words))
    return handles


def _styled(ax: Axes) -> Axes:
    style.plain_axes(ax)
    return ax

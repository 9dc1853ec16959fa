"""The picture of one run's reward shape: h(s), h'(s), where its answers are, how hard the loss pulls, and its field."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import style
from alphapo_cli.plots.shape_data import Field, Numbers, RewardShape
from alphapo_cli.plots.shape_marks import arrows_of, levels, words_of

SIDES = ((0, "chosen", style.CHOSEN), (1, "rejected", style.REJECTED))
SIZES = LinearSegmentedColormap.from_list("sizes", ["#D5DCE6", "#8FA5C4", "#4A6FA5", "#1B3A6B"])
_BINS, _ARROWS = 32, 13
# The axes of both fields are scores, the logarithms of p: ds = dp / p.
BY_P = "by p: parts of -dL/dp; on these axes, log p, that step leans more to the less likely answer"
_WIDE = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
HALO = [withStroke(linewidth=3.2, foreground="white")]


def reward_shape_picture(found: RewardShape, path: str | os.PathLike[str], title: str) -> None:
    """Save `reward_shape_figure` as a PNG at `path`."""
    style.save(reward_shape_figure(found, title), path)


def reward_shape_figure(found: RewardShape, title: str) -> Figure:
    """Draw shape and slope, the scores of the pairs, their gradient weights, and the field with the path of the means.

    Args:
        found: what is drawn.
        title: the figure's title.

    Returns:
        A figure of six panels.
    """
    lines = textwrap.wrap(title.replace(" = ", "\u00a0=\u00a0"), 86) or [""]
    figure, axes = style.new_figure(2, 3, 5.5 + 0.18 * (len(lines) - 1), "\n".join(lines))
    _curve(axes[0], found, (found.shape, found.shape_start), "Shape h(s)")
    _curve(axes[1], found, (found.slope, found.slope_start), "Slope h'(s)")
    log_if_wide(axes[1], found.slope if found.slope_start is None else np.append(found.slope, found.slope_start))
    if axes[1].get_yscale() == "linear":
        style.from_zero(axes[1])
    _weights(axes[2], found)
    scores_panel(axes[3], found)
    unit = f", {found.unit}"
    style.panel(axes[3], f"Where the {found.pairs:,} pairs are", "answers", f"score s{unit}")
    axes[3].sharex(axes[0])
    for ax in axes[:4]:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for ax, probability in ((axes[4], False), (axes[5], True)):
        field_panel(ax, found, style.INK, probability=probability, arrows=_ARROWS)
        of = "p = exp(s)" if probability else "score"
        style.panel(ax, f"Down the loss by {of}", "rejected score" if ax is axes[4] else "", "chosen score")
    style.figure_legend(figure, _handles(found), columns=2)
    return figure


def log_if_wide(ax: Axes, values: Numbers, decades: float = 12.0) -> None:
    """Make the y axis logarithmic where the values span more than a factor of twenty, over that many decades at most."""
    known = np.abs(values[np.isfinite(values)])
    known = known[known > 0]
    if known.size and known.max() > _WIDE * known.min():
        ax.set_yscale("log")
        ax.set_ylim(max(known.min() / 1.5, known.max() * 10**-decades), known.max() * 1.6)
        ax.minorticks_off()


def scores_panel(ax: Axes, found: RewardShape, *, named: bool = True) -> None:
    """Histograms of both sides' scores: dashed at step 0, filled at the end; `named` by a text in their colour."""
    ends = np.concatenate([part.scores[np.isfinite(part.scores)] for part in (found.start, found.now)])
    bins = np.linspace(ends.min(), max(ends.max(), ends.min() + 1e-9), _BINS + 1).tolist()
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for side, name, colour in SIDES:
        start, now = (part.scores[side][np.isfinite(part.scores[side])] for part in (found.start, found.now))
        ax.hist(now, bins, histtype="stepfilled", color=colour, alpha=0.4, linewidth=0, gid="end")
        ax.hist(start, bins, histtype="step", color=colour, linewidth=1.0, linestyle="--", gid="start")
        if named:
            ax.text(0.03, 0.95 - 0.1 * side, name, transform=ax.transAxes, va="top", color=colour,
                    fontsize=style.TICK_SIZE, path_effects=HALO)  # fmt: skip


def field_panel(ax: Axes, found: RewardShape, colour: Any, *, probability: bool = False, arrows: int = 9) -> None:
    """Arrows down the loss of a pair over its two scores, coloured by their size, and the path of the means.

    Args:
        ax: the panel.
        found: what is drawn; without a field the path alone, and by p the sentence that says why.
        colour: of the path.
        probability: whether the derivatives are by p = exp(s) in place of s.
        arrows: about as many along each axis.
    """
    if found.field is None and probability:
        note = next((n for n in found.notes if n.startswith("no gradient field")), "no gradient field")
        ax.text(0.5, 0.5, textwrap.fill(note, 30), transform=ax.transAxes, ha="center", va="center", color=style.GREY,
                fontsize=8)  # fmt: skip
        ax.set_axis_off()
        return
    ax.set_aspect("equal")
    if found.field is None:
        ax.text(
            0.97, 0.03, "no field", transform=ax.transAxes, ha="right", color=style.GREY, fontsize=7, gid="no field"
        )
        known = found.means[np.isfinite(found.means)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        room = 0.3 * (high - low) or 0.5
    else:
        _arrows(ax, found.field, arrows, probability=probability)
        low, high = float(found.field.at[0]), float(found.field.at[-1])
        room = 0.4 * (high - low) / arrows  # for the halves of the outermost arrows
    ends = (low - room, high + room)
    ax.plot(ends, ends, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1.2)
    _path(ax, found, colour)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    ax.grid(visible=False)


def _arrows(ax: Axes, field: Field, count: int, *, probability: bool) -> None:
    places, directions, sizes = arrows_of(field, count, probability=probability)
    shown = np.isfinite(sizes)
    if not shown.any():
        return
    reach = 0.75 * (field.at[-1] - field.at[0]) / count
    starts = places[shown] - 0.5 * reach * directions[shown]
    ax.quiver(*starts.T, *(reach * directions[shown]).T, levels(sizes)[shown], cmap=SIZES, norm=Normalize(0.0, 1.0),
              angles="xy", scale_units="xy", scale=1.0, width=0.007, headwidth=4.2, headlength=4.6, headaxislength=4.2, zorder=1.5,
              gid="field")  # fmt: skip


def _path(ax: Axes, found: RewardShape, colour: Any) -> None:
    """The path of the mean scores, from an open circle at step 0 to a dot at the end; the steps are written beside."""
    known = np.isfinite(found.means).all(axis=0)
    if not known.any():
        return
    path = found.means[:, known].T
    ax.add_collection(LineCollection([path], colors="white", linewidths=4.0, zorder=2.4), autolim=False)
    ax.plot(*path.T, color=colour, linewidth=1.7, zorder=2.5, gid="path")
    ax.plot(*path[0], "o", color=colour, markerfacecolor="white", markersize=5, zorder=2.7, gid="path start")
    ax.plot(*path[-1], "o", color=colour, markeredgecolor="white", markersize=5.5, zorder=2.8, gid="path end")
    if len(path) < 2:
        return
    down = path[-1][1] < path[0][1]
    for place, name, below in ((path[0], found.ends[0], not down), (path[-1], found.ends[1], down)):
        ax.annotate(name, place, xytext=(0, -10 if below else 6), textcoords="offset points", ha="center",
                    fontsize=7, color=style.INK, zorder=3, path_effects=HALO, gid="label")  # fmt: skip


def _curve(ax: Axes, found: RewardShape, ends: tuple[Numbers, Numbers | None], name: str) -> None:
    """A curve over the scores at the end and, dotted, at step 0, with the means of both sides on it."""
    values, at_start = ends
    ax.plot(found.grid, values, color=style.INK, linewidth=1.6, zorder=2, gid="curve")
    mark_means(ax, found, values, at_start, style.GREY)
    style.panel(ax, name, "", "" if ax.get_subplotspec() is None else "score s")


def mark_means(ax: Axes, found: RewardShape, values: Numbers, at_start: Numbers | None, colour_of_start: Any) -> None:
    """Mark where on a curve over `found.grid` the mean scores are: open at step 0, filled at the end.

    Args:
        ax: the panel, which has the curve.
        found: what is drawn.
        values: the curve at the end.
        at_start: the curve at step 0, which is drawn dotted and has the open marks; None: as at the end.
        colour_of_start: its colour.
    """
    if at_start is not None:
        ax.plot(
            found.grid, at_start, color=colour_of_start, linewidth=1.1, linestyle=":", zorder=1.9, gid="curve at start"
        )
    for side, _, colour in SIDES:
        for mean, filled in ((found.means[side, 0], False), (found.means[side, -1], True)):
            if np.isfinite(mean):
                on = values if filled or at_start is None else at_start
                y = float(np.interp(mean, found.grid, on))
                ax.plot(mean, y, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5,
                        zorder=3 - 0.1 * side, gid="mean")  # fmt: skip


def _weights(ax: Axes, found: RewardShape) -> None:
    """The size of dL/ds of every answer against its score: open and faint at step 0, filled at the end."""
    style.panel(ax, "Gradient weight of each answer", "size of dL/ds", "score s")
    every = np.abs(np.concatenate([found.start.weights, found.now.weights]))
    if not np.isfinite(every).any():
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", color=style.GREY, fontsize=8)
        return
    log_if_wide(ax, every, 6.0)
    if ax.get_yscale() == "linear":
        ax.set_ylim(0.0, 1.08 * float(np.nanmax(every)) or 1.0)
    bottom = ax.get_ylim()[0]  # where what is smaller is drawn
    for part, filled in ((found.start, False), (found.now, True)):
        for side, _, colour in SIDES:
            x, y = part.scores[side], np.abs(part.weights[side])
            known = np.isfinite(x) & np.isfinite(y)
            face: dict[str, Any] = {"color": colour, "alpha": 0.45, "linewidths": 0} if filled else {
                "facecolors": "none", "edgecolors": colour, "alpha": 0.3, "linewidths": 0.6}  # fmt: skip
            ax.scatter(x[known], np.maximum(y[known], bottom), s=8, zorder=2 + filled, gid="end" if filled else "start",
                       clip_on=False, **face)  # fmt: skip
    if found.limit is not None and found.limit > ax.get_ylim()[0]:
        ax.axhline(found.limit, color=style.GREY, linewidth=0.9, linestyle=":", zorder=1, gid="limit")


def _handles(found: RewardShape) -> list[Any]:
    """One entry a side with its numbers, and one for what is open and filled."""
    handles = []
    for side, name, colour in SIDES:
        words = f"{name}: mean weight {words_of(found, side)}"
        handles.append(Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=words))
    handles.append(Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", linestyle="--", markersize=5,
                          linewidth=1.0, label=f"{found.ends[0]}; filled: {found.ends[1]}"))  # fmt: skip
    if found.field is not None:
        handles.append(Line2D([], [], color=SIZES(0.75), marker=r"$\rightarrow$", linestyle="", markersize=9,
                              label="where a step down the loss leads, the darker the steeper"))  # fmt: skip
        handles.append(Line2D([], [], linestyle="", label=BY_P))
    if found.limit is not None:
        text = f"saturated below {found.limit:.2g}: 1 % of the weight at scores of 0"
        handles.append(Line2D([], [], color=style.GREY, linestyle=":", linewidth=0.9, label=text))
    return handles

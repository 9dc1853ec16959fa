"""The figure of a sweep's outcome, displacement of the chosen responses and share displaced, over the swept value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from alphapo_cli.plots import style
from alphapo_cli.plots.sweep_curves import SweepCurve, group_seeds, is_over_alpha, value_colours

# Panel title and axis label of the usual outcome metrics; another metric is labelled by its key.
_NAMES = {
    "eval/win_rate": ("Win rate by the judge", "share won"),
    "glassbox/true_win_rate": ("True win rate against the start", "share won"),
    "glassbox/true_reward": ("True reward", "reward units"),
    "rewards/accuracies": ("Reward accuracy on the probe", "share"),
    "win_rate": ("Win rate", "%"),
    "length_controlled_winrate": ("Length-controlled win rate", "%"),
    "displacement/chosen": ("Mean change of the chosen", "nats per token"),
    "displacement/share_chosen_down": ("Share of the chosen that fell", "share"),
}
# The values that mean "no better than before" or "no better than chance".
_NEUTRAL = {
    "eval/win_rate": 0.5,
    "glassbox/true_win_rate": 0.5,
    "rewards/accuracies": 0.5,
    "win_rate": 50.0,
    "length_controlled_winrate": 50.0,
    "displacement/chosen": 0.0,
}


def sweep_outcome(
    cells: Sequence[SweepCurve],
    path: str | os.PathLike[str],
    metric: str | None = None,
    zero_name: str | None = None,
    best: float | str | None = None,
    title: str | None = None,
    name: str = "alpha",
    verdict: str | None = None,
) -> None:
    """Save `outcome_figure` as a PNG at `path`."""
    style.save(outcome_figure(cells, metric, zero_name, best, title, name, verdict), path)


def outcome_figure(
    cells: Sequence[SweepCurve],
    metric: str | None = None,
    zero_name: str | None = None,
    best: float | str | None = None,
    title: str | None = None,
    name: str = "alpha",
    verdict: str | None = None,
) -> Figure:
    """Draw three panels over the swept value: `metric`, displacement/chosen, displacement/share_chosen_down.

    Dots are means over seeds, with a dash for each seed, and bars are the cells' 95 % intervals. With several seeds a
    bar spans the means of their lower and upper ends: the seeds share their prompts, so it is not narrowed. Hollow dots
    are cells that are not finished, crosses at the bottom cells that failed.

    Args:
        cells: the cells of the sweep.
        metric: the outcome; None: the true win rate where a cell has it, else the reward accuracy.
        zero_name: the method that alpha = 0 equals ("SimPO", "DPO"), for the legend.
        best: the best alpha, or label of a sweep that is not over alpha; None: that with the highest mean of `metric`.
        title: the figure's title; None for the usual one.
        name: the swept key, for the x axis.
        verdict: whether the best can be told from alpha = 0: it is marked where it can, or where nobody compared it.

    Returns:
        A figure of three panels, side by side, or stacked where there are many labels.
    """
    metric = metric or _default_metric(cells)
    keys = (metric, "displacement/chosen", "displacement/share_chosen_down")
    places = _places(cells)
    over_alpha = is_over_alpha(cells)
    # Many labels fit below a wide panel only.
    stacked = not over_alpha and len(places) > style.MANY
    figure, axes = style.new_figure(
        *((3, 1, 9.0) if stacked else (1, 3, 3.4)),
        title or f"Outcome and displacement at the end of training, by {name}",
        sharex=True,
    )
    by_series: dict[str, list[list[SweepCurve]]] = {}
    for group in group_seeds(cells):
        by_series.setdefault(group[0].series, []).append(group)
    colour_of = _colours(cells, list(by_series))
    for ax, key in zip(axes, keys, strict=True):
        for i, groups in enumerate(by_series.values()):
            # Series are offset along x, so that none hides another with equal values.
            offset = 0.5 * _half_width(places) * (i - (len(by_series) - 1) / 2) / max(1, len(by_series) - 1)
            shifted = {value: x + offset for value, x in places.items()}
            _draw_series(ax, groups, key, shifted, colour_of, style.MARKERS[i % len(style.MARKERS)])
        panel_title, unit = _NAMES.get(key, (key, ""))
        style.panel(ax, panel_title, f"{unit}{_counted(cells, key)}", name)
        if key in _NEUTRAL:
            style.reference_line(ax, _NEUTRAL[key])
        if key == "displacement/share_chosen_down":
            ax.set_ylim(-0.03, 1.03)
        _mark_failed(ax, cells, places)
    if best is None:
        best = _best(cells, metric)
    # Where there is no evidence that it is better, a band would claim it.
    if best in places and len(places) > 1 and verdict in (None, "distinguishable"):
        _mark_best(axes, places, best)
    if over_alpha and min(places.values()) <= 0.0 <= max(places.values()):
        for ax in axes:
            ax.axvline(0.0, color=style.GREY, linewidth=1.0, linestyle=":", zorder=1, gid="zero")
    if not over_alpha:
        for ax in axes:
            style.name_places(ax, [str(key) for key in places])
    style.figure_legend(
        figure, _handles(axes, list(by_series), colour_of, name, zero_name, best, _words(cells, keys, verdict))
    )
    return figure


def _default_metric(cells: Sequence[SweepCurve]) -> str:
    known = any(style.number(cell.metrics.get("glassbox/true_win_rate")) is not None for cell in cells)
    return "glassbox/true_win_rate" if known else "rewards/accuracies"


def _x_key(cell: SweepCurve) -> float | str:
    return cell.label if cell.alpha is None else cell.alpha


def _places(cells: Sequence[SweepCurve]) -> dict[float | str, float]:
    """The x coordinate of each value: alpha itself, or the index of its label."""
    if is_over_alpha(cells):
        return {_x_key(cell): float(cell.alpha or 0.0) for cell in cells}
    return {key: float(i) for i, key in enumerate(dict.fromkeys(_x_key(cell) for cell in cells))}


def _colours(cells: Sequence[SweepCurve], all_series: Sequence[str]) -> Callable[[SweepCurve], Any]:
    """The colour of a cell: by series where there are several, else by alpha or label, as in `displacement_figure`."""
    if len(all_series) > 1:
        return lambda cell: style.CATEGORIES[all_series.index(cell.series) % len(style.CATEGORIES)]
    return value_colours(cells)


def _draw_series(
    ax: Axes,
    groups: Sequence[Sequence[SweepCurve]],
    key: str,
    places: Mapping[float | str, float],
    colour_of: Callable[[SweepCurve], Any],
    marker: str,
) -> None:
    """Means, seeds and intervals of one series in one panel."""
    means: list[tuple[float, float]] = []
    for group in groups:
        x, colour = places[_x_key(group[0])], colour_of(group[0])
        values = [(cell, style.number(cell.metrics.get(key))) for cell in group if cell.state != "failed"]
        measured = [(cell, value) for cell, value in values if value is not None]
        complete = [(cell, value) for cell, value in measured if cell.state == "complete"]
        drawn = complete or measured
        if not drawn:
            continue
        mean = fmean(value for _, value in drawn)
        if complete:
            means.append((x, mean))
        if len(drawn) > 1:
            ax.plot([x] * len(drawn), [value for _, value in drawn], "_", color=colour, markersize=7,
                    markeredgewidth=1.0, zorder=2.5, gid="seeds")  # fmt: skip
        ends = [cell.intervals[key] for cell, _ in drawn if key in cell.intervals]
        if ends:
            low, high = fmean(end[0] for end in ends), fmean(end[1] for end in ends)
            ax.plot([x, x], [low, high], color=colour, linewidth=1.2, zorder=2, gid="interval")
        ax.plot(x, mean, marker, color=colour, markersize=5, markerfacecolor=colour if complete else "white", zorder=3,
                gid="cell" if complete else "unfinished")  # fmt: skip
    # A line between categories would suggest values in between.
    if len(means) > 1 and is_over_alpha([cell for group in groups for cell in group]):
        colour = colour_of(groups[0][0]) if len({colour_of(group[0]) for group in groups}) == 1 else style.GREY
        ax.plot(*zip(*means, strict=True), color=colour, linewidth=1.1, alpha=0.8, zorder=1.5, gid="means")


def _mark_failed(ax: Axes, cells: Sequence[SweepCurve], places: Mapping[float | str, float]) -> None:
    failed = sorted({places[_x_key(cell)] for cell in cells if cell.state == "failed"})
    if failed:
        ax.plot(failed, [0.03] * len(failed), "x", color=style.VERMILLION, markersize=6, markeredgewidth=1.6,
                transform=ax.get_xaxis_transform(), clip_on=False, zorder=4, gid="failed")  # fmt: skip


def _best(cells: Sequence[SweepCurve], metric: str) -> float | str | None:
    """The value with the highest mean of `metric` over its complete seeds."""
    means: dict[float | str, float] = {}
    for group in group_seeds(cells):
        values = [style.number(cell.metrics.get(metric)) for cell in group if cell.state == "complete"]
        known = [value for value in values if value is not None]
        if known:
            key = _x_key(group[0])
            means[key] = max(means.get(key, float("-inf")), fmean(known))
    return max(means, key=lambda key: (round(means[key], 12), key == 0.0), default=None)  # of equals, alpha = 0


def _mark_best(axes: Sequence[Axes], places: Mapping[float | str, float], best: float | str) -> None:
    at, half = places[best], _half_width(places)
    for ax in axes:
        ax.axvspan(at - half, at + half, color=style.BEST, alpha=0.2, linewidth=0, zorder=0, gid="best")


def _counted(cells: Sequence[SweepCurve], key: str) -> str:
    """The number of prompts or pairs, for a panel's axis."""
    n = next((cell.counts[key] for cell in cells if key in cell.counts), None)
    return "" if n is None else f", n = {n:,} {_rows(key)}"


def _rows(key: str) -> str:
    """What a metric is the mean over."""
    return "prompts" if "win" in key else "pairs"


def _words(cells: Sequence[SweepCurve], keys: Sequence[str], verdict: str | None) -> tuple[str, str]:
    """What the legend adds to the interval and to the best point."""
    over = next((cell.over for cell in cells if cell.intervals and cell.over), "")
    if over:
        rows = dict.fromkeys(_rows(key) for key in keys if any(key in cell.intervals for cell in cells))
        # Intervals and means are those of complete cells.
        done = [sum(cell.state == "complete" for cell in group) for group in group_seeds(cells)]
        seeds = sorted(set(filter(None, done)))
        many = f"{seeds[0]} to {seeds[-1]} " if len(seeds) > 1 else f"{seeds[0]} " if seeds else ""
        plural = "seed" if seeds == [1] else "seeds"
        over = "/".join(rows) + (
            f" and {many}{plural}" if "seeds" in over else f", {many}{plural} each" if seeds else ""
        )
    said = f" ({verdict} from alpha = 0)" if verdict else ""
    return f" over {over}" if over else "", said


def _handles(
    axes: Sequence[Axes],
    all_series: Sequence[str],
    colour_of: Callable[[SweepCurve], Any],
    name: str,
    zero_name: str | None,
    best: float | str | None,
    words: tuple[str, str],
) -> list[Any]:
    """Legend entries of the marks that the panels have."""
    artists = [artist for ax in axes for artist in (*ax.get_lines(), *ax.patches)]
    present = {artist.get_gid() for artist in artists}
    handles: list[Any] = []
    if len(all_series) > 1:
        for i, text in enumerate(all_series):
            colour = colour_of(SweepCurve(None, "", series=text))
            marker = style.MARKERS[i % len(style.MARKERS)]
            handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, label=text))
    if "best" in present:
        text = f"best: {name} = {best:g}" if isinstance(best, float | int) else f"best: {best}"
        handles.append(Patch(color=style.BEST, alpha=0.2, linewidth=0, label=f"{text}{words[1]}"))
    if "zero" in present:
        text = f"{name} = 0" + (f": {zero_name}" if zero_name else "")
        handles.append(Line2D([], [], color=style.GREY, linestyle=":", linewidth=1.0, label=text))
    marks = [
        ("interval", "|", f"95 % interval{words[0]}"),
        ("seeds", "_", "one seed"),
        ("unfinished", "o", "not finished"),
        ("failed", "x", "failed"),
    ]
    for gid, marker, text in marks:
        if gid in present:
            colour = style.VERMILLION if gid == "failed" else style.INK
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6,
                                  markerfacecolor="white", label=text))  # fmt: skip
    return handles


def _half_width(places: Mapping[float | str, float]) -> float:
    at = sorted(set(places.values()))
    gaps = [b - a for a, b in pairwise(at)]
    return 0.3 * min(gaps, default=1.0)

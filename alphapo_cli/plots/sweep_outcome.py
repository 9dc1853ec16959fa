"""What each value of a sweep led to: outcome, displacement of the chosen responses, share displaced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alphapo_cli.plots import style
from alphapo_cli.plots.sweep_curves import SweepCurve, group_seeds, is_over_alpha

# Panel title and axis label of the metrics that are usual outcomes; any other key stands for itself.
_NAMES = {
    "glassbox/true_win_rate": ("True win rate against the base", "share of prompts won"),
    "glassbox/true_reward": ("True reward", "reward units"),
    "rewards/accuracies": ("Reward accuracy on the probe", "share of pairs"),
    "win_rate": ("Win rate", "%"),
    "length_controlled_winrate": ("Length-controlled win rate", "%"),
    "displacement/chosen": ("Displacement of the chosen", "nats per token since step 0"),
    "displacement/share_chosen_down": ("Chosen responses displaced", "share of pairs"),
}
# Where a metric means "no better than before" or "no better than chance".
_NEUTRAL = {
    "glassbox/true_win_rate": 0.5,
    "rewards/accuracies": 0.5,
    "win_rate": 50.0,
    "length_controlled_winrate": 50.0,
    "displacement/chosen": 0.0,
}
_UNFINISHED = ("running", "interrupted", "stopped")


def sweep_outcome(
    cells: Sequence[SweepCurve],
    path: str | os.PathLike[str],
    metric: str | None = None,
    zero_name: str | None = None,
    best: float | str | None = None,
    title: str | None = None,
    name: str = "alpha",
) -> None:
    """Writes the picture of `outcome_figure` as a PNG at `path`."""
    style.save(outcome_figure(cells, metric, zero_name, best, title, name), path)


def outcome_figure(
    cells: Sequence[SweepCurve],
    metric: str | None = None,
    zero_name: str | None = None,
    best: float | str | None = None,
    title: str | None = None,
    name: str = "alpha",
) -> Figure:
    """Three panels over the swept value: `metric`, displacement/chosen, displacement/share_chosen_down.

    Args:
        metric: the outcome; null: the true win rate where a cell has it, else the reward accuracy.
        zero_name: the method that alpha = 0 is ("SimPO", "DPO"), written at a line there.
        best: the best alpha, or label of a sweep that is not over alpha; null: the highest mean of `metric`.
        name: the swept key, for the x axis.

    Dots are cells, the line joins the means over seeds, and bars are the cells' intervals. With several seeds a bar runs
    between the means of their lower and upper ends: the seeds share their prompts, so it is not narrowed. Hollow dots
    are cells that are not finished, crosses at the bottom cells that failed.
    """
    metric = metric or _default_metric(cells)
    keys = (metric, "displacement/chosen", "displacement/share_chosen_down")
    figure, axes = style.new_figure(1, 3, 3.3, title or f"Outcome of the sweep over {name}", sharex=True)
    places = _places(cells)
    by_series: dict[str, list[list[SweepCurve]]] = {}
    for group in group_seeds(cells):
        by_series.setdefault(group[0].series, []).append(group)
    for ax, key in zip(axes, keys, strict=True):
        for i, (text, groups) in enumerate(by_series.items()):
            colour = style.CATEGORIES[i % len(style.CATEGORIES)] if len(by_series) > 1 else style.INK
            _draw_series(ax, groups, key, places, colour, style.MARKERS[i % len(style.MARKERS)], text or None)
        panel_title, unit = _NAMES.get(key, (key, ""))
        style.panel(ax, panel_title, unit, name)
        if key in _NEUTRAL:
            style.reference_line(ax, _NEUTRAL[key])
        if key == "displacement/share_chosen_down":
            ax.set_ylim(-0.03, 1.03)
        _mark_failed(ax, cells, places)
    _mark_best(axes, cells, metric, best, places)
    if is_over_alpha(cells):
        _mark_zero(axes, zero_name, [places[_x_key(cell)] for cell in cells])
    else:
        for ax in axes:
            _label_categories(ax, places)
    if len(by_series) > 1:
        style.legend(axes[2])
    return figure


def _default_metric(cells: Sequence[SweepCurve]) -> str:
    known = any(style.number(cell.metrics.get("glassbox/true_win_rate")) is not None for cell in cells)
    return "glassbox/true_win_rate" if known else "rewards/accuracies"


def _x_key(cell: SweepCurve) -> float | str:
    return cell.label if cell.alpha is None else cell.alpha


def _places(cells: Sequence[SweepCurve]) -> dict[float | str, float]:
    """Where each value stands on the x axis: alpha itself, or the labels one after another."""
    if is_over_alpha(cells):
        return {_x_key(cell): float(cell.alpha or 0.0) for cell in cells}
    return {key: float(i) for i, key in enumerate(dict.fromkeys(_x_key(cell) for cell in cells))}


def _draw_series(
    ax: Axes,
    groups: Sequence[Sequence[SweepCurve]],
    key: str,
    places: Mapping[float | str, float],
    colour: str,
    marker: str,
    label: str | None,
) -> None:
    means: list[tuple[float, float]] = []
    for group in groups:
        x = places[_x_key(group[0])]
        measured = [(cell, value) for cell in group if (value := style.number(cell.metrics.get(key))) is not None]
        drawn = [(cell, value) for cell, value in measured if cell.state != "failed"]
        if not drawn:
            continue
        finished = [value for cell, value in drawn if cell.state not in _UNFINISHED]
        mean = fmean(finished or [value for _, value in drawn])
        if finished:
            means.append((x, mean))
        if len(drawn) > 1:
            ax.plot([x] * len(drawn), [value for _, value in drawn], ".", color=colour, alpha=0.45, markersize=4,
                    gid="seeds")  # fmt: skip
        ends = [cell.intervals[key] for cell, _ in drawn if key in cell.intervals]
        if ends:
            low, high = fmean(end[0] for end in ends), fmean(end[1] for end in ends)
            ax.plot([x, x], [low, high], color=colour, linewidth=1.1, alpha=0.6, gid="interval")
        ax.plot(x, mean, marker, color=colour, markersize=4.5, markerfacecolor=colour if finished else "white",
                gid="cell" if finished else "unfinished")  # fmt: skip
    if len(means) > 1 and all(cell.alpha is not None for group in groups for cell in group):
        ax.plot(*zip(*means, strict=True), color=colour, linewidth=1.2, alpha=0.8, gid="means")
    # One entry per series, marker and colour together.
    ax.plot([], [], marker=marker, color=colour, markersize=4.5, linewidth=1.2, label=label)


def _mark_failed(ax: Axes, cells: Sequence[SweepCurve], places: Mapping[float | str, float]) -> None:
    failed = sorted({places[_x_key(cell)] for cell in cells if cell.state == "failed"})
    if failed:
        ax.plot(failed, [0.03] * len(failed), "x", color=style.VERMILLION, markersize=6, markeredgewidth=1.6,
                transform=ax.get_xaxis_transform(), clip_on=False, label="failed", gid="failed")  # fmt: skip
        ax.legend(fontsize=style.TICK_SIZE, frameon=False, loc="best")


def _mark_best(
    axes: Sequence[Axes],
    cells: Sequence[SweepCurve],
    metric: str,
    best: float | str | None,
    places: Mapping[float | str, float],
) -> None:
    """A ring around the best value in each panel, named in the first."""
    outcomes: dict[float | str, float] = {}
    for group in group_seeds(cells):
        values = [style.number(cell.metrics.get(metric)) for cell in group if cell.state == "complete"]
        known = [value for value in values if value is not None]
        if known:
            key = _x_key(group[0])
            outcomes[key] = max(outcomes.get(key, float("-inf")), fmean(known))
    if best is None and outcomes:
        best = max(outcomes, key=lambda key: outcomes[key])
    if best is None or best not in places:
        return
    for ax in axes:
        ax.axvspan(places[best] - _half_width(places), places[best] + _half_width(places), color=style.SKY, alpha=0.25,
                   linewidth=0, zorder=0, gid="best")  # fmt: skip
    text = f"best: {best:g}" if isinstance(best, float | int) else "best"
    axes[0].annotate(text, (places[best], 1.0), xycoords=axes[0].get_xaxis_transform(), ha="center", va="bottom",
                     fontsize=style.TICK_SIZE, color=style.BLUE)  # fmt: skip


def _half_width(places: Mapping[float | str, float]) -> float:
    at = sorted(set(places.values()))
    gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
    return 0.3 * min(gaps, default=1.0)


def _mark_zero(axes: Sequence[Axes], zero_name: str | None, alphas: Sequence[float]) -> None:
    if not min(alphas) <= 0.0 <= max(alphas):
        return
    for ax in axes:
        ax.axvline(0.0, color=style.GREY, linewidth=0.8, linestyle=":", zorder=1, gid="zero")


def _label_categories(ax: Axes, places: Mapping[float | str, float]) -> None:
    labels: list[Any] = [str(key) for key in places]
    crowded = sum(len(label) for label in labels) > 24
    ax.set_xticks(list(places.values()), labels, rotation=35 if crowded else 0, ha="right" if crowded else "center")
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xlabel("")

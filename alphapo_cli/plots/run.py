"""The figure of one run: displacement, reward margin and outcome over its optimizer steps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import style

Rows = Sequence[Mapping[str, Any]]


def run_curves(rows: Rows, path: str | os.PathLike[str], title: str) -> None:
    """Save `run_figure` as a PNG at `path`."""
    style.save(run_figure(rows, title), path)


def run_figure(rows: Rows, title: str) -> Figure:
    """Draw displacement, reward margin, shares of pairs and gradient weights against optimizer steps.

    In the embedded world two more panels show the true win rate and the length of the answers. A panel without any
    value has a note instead.

    Args:
        rows: the rows of one metrics.jsonl; nulls and missing keys are left out.
        title: the figure's title.

    Returns:
        A figure of 2 x 2 or 2 x 3 panels.
    """
    glassbox = any(style.number(row.get("glassbox/true_win_rate")) is not None for row in rows)
    panels: list[Callable[[Axes, Rows], None]] = [_displacement, _margin, _shares, _gradient]
    if glassbox:
        panels += [_win_rate, _length]
    columns = math.ceil(len(panels) / 2)
    figure, axes = style.new_figure(2, columns, 4.9, title, sharex=True)
    for ax, draw in zip(axes, panels, strict=True):
        draw(ax, rows)
        style.legend(ax)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if not ax.has_data() or not any(len(line.get_xdata()) for line in _curves(ax)):
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=style.GREY, fontsize=8)
    figure.align_ylabels(axes)
    steps = {step for row in rows if (step := style.number(row.get("step"))) is not None}
    if len(steps) == 1:  # else matplotlib would scale the axis to fractions of a step
        axes[0].set_xlim(min(steps) - 1, min(steps) + 1)
    for ax in axes[columns:]:
        ax.set_xlabel("optimizer step", fontsize=style.LABEL_SIZE, color=style.INK)
    return figure


def _curves(ax: Axes) -> list[Any]:
    return [line for line in ax.get_lines() if line.get_gid() == "curve"]


def _curve(
    ax: Axes, rows: Rows, key: str, colour: str, label: str | None = None, change: Callable[[float], float] = float
) -> None:
    """A line of `change` of the metric against steps."""
    steps, values = style.series(rows, key, change)
    if not steps:
        return
    # With few steps show the points: a line alone would hide a single one.
    marker = "o" if len(steps) <= 12 else None
    ax.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label, gid="curve")


def _band(ax: Axes, rows: Rows, key: str, colour: str, ends: tuple[str, str] = ("p10", "p90")) -> None:
    """The range between two keys: the 10th and 90th percentile over the probe pairs, or the ends of an interval."""
    low, high = (dict(zip(*style.series(rows, f"{key}/{end}"), strict=True)) for end in ends)
    steps = sorted(low.keys() & high.keys())
    if steps:
        ax.fill_between(steps, [low[s] for s in steps], [high[s] for s in steps], color=colour, alpha=0.14, linewidth=0)


def _displacement(ax: Axes, rows: Rows) -> None:
    for side, colour in (("chosen", style.CHOSEN), ("rejected", style.REJECTED)):
        _band(ax, rows, f"displacement/{side}", colour)
        _curve(ax, rows, f"displacement/{side}", colour, side)
    style.reference_line(ax, 0.0)
    band = " (band: 10-90 %)" if ax.collections else ""
    style.panel(ax, f"Displacement{band}", "nats per token since step 0")


def _margin(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "rewards/margins", style.INK)
    style.reference_line(ax, 0.0)
    style.panel(ax, "Reward margin", "chosen minus rejected reward")


def _shares(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "rewards/accuracies", style.INK, "margin above 0 (accuracy; ties half)")
    _curve(ax, rows, "displacement/share_chosen_down", style.PURPLE, "chosen displaced")
    ax.set_ylim(-0.02, 1.02)
    style.panel(ax, "Shares of the probe pairs", "share of pairs")


def _gradient(ax: Axes, rows: Rows) -> None:
    for side, colour in (("chosen", style.CHOSEN), ("rejected", style.REJECTED)):
        _curve(ax, rows, f"gradient_weight/{side}", colour, side, abs)
    ax.set_ylim(bottom=0)
    style.panel(ax, "Gradient weight", "size of the mean dL/ds")


def _win_rate(ax: Axes, rows: Rows) -> None:
    _band(ax, rows, "glassbox/true_win_rate", style.GREEN, ("low", "high"))
    _curve(ax, rows, "glassbox/true_win_rate", style.GREEN)
    style.reference_line(ax, 0.5)
    ax.set_ylim(-0.02, 1.02)
    band = " (95 % over prompts)" if ax.collections else ""
    style.panel(ax, f"True win rate against the base{band}", "share of prompts won")


def _length(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "glassbox/length", style.GREEN)
    ax.set_ylim(bottom=0)
    style.panel(ax, "Length of the sampled answers", "tokens")

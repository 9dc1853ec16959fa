"""The figure of one run: displacement, reward margin, outcome, loss and KL over its optimizer steps."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import style

Rows = Sequence[Mapping[str, Any]]
_WIN = "glassbox/true_win_rate"
_IDEALISED = "ranking/idealised_accuracy"
_SIDES = (("chosen", style.CHOSEN, "-"), ("rejected", style.REJECTED, "--"))


def run_curves(rows: Rows, path: str | os.PathLike[str], title: str, best: int | None = None) -> None:
    """Save `run_figure` as a PNG at `path`."""
    style.save(run_figure(rows, title, best), path)


def run_figure(rows: Rows, title: str, best: int | None = None) -> Figure:
    """Draw displacement, reward margin, shares of pairs, gradient weights, loss and KL against optimizer steps.

    In the embedded world three more panels show the true win rate, the length of the answers and the gradient norm. A
    panel without any value has a note instead.

    Args:
        rows: the rows of one metrics.jsonl; nulls and missing keys are left out.
        title: the figure's title.
        best: a step to mark in every panel; None: that of the highest true win rate after step 0, where there is one.

    Returns:
        A figure of 2 x 3 or 3 x 3 panels.
    """
    glassbox = any(style.number(row.get(_WIN)) is not None for row in rows)
    panels: list[Callable[[Axes, Rows], None]] = [_displacement, _margin, _shares, _gradient]
    panels += [_win_rate, _length, _loss, _kl, _norm] if glassbox else [_loss, _kl]
    lines = textwrap.wrap(title.replace(" = ", "\u00a0=\u00a0"), 86) or [""]
    high = 2.25 * len(panels) / 3 + 0.4 + 0.18 * (len(lines) - 1)
    figure, axes = style.new_figure(len(panels) // 3, 3, high, "\n".join(lines), sharex=True)
    best = _best_step(rows) if best is None else best
    for ax, draw in zip(axes, panels, strict=True):
        draw(ax, rows)
        if best is not None and ax.has_data():
            ax.axvline(best, color=style.GREY, linewidth=0.9, linestyle=":", zorder=1, gid="best")
        style.legend(ax)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if not ax.has_data() or not any(len(line.get_xdata()) for line in _curves(ax)):
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=style.GREY, fontsize=8)
    figure.align_ylabels(axes)
    steps = {step for row in rows if (step := style.number(row.get("step"))) is not None}
    if len(steps) == 1:  # else matplotlib would scale the axis to fractions of a step
        axes[0].set_xlim(min(steps) - 1, min(steps) + 1)
    for ax in axes[-3:]:
        ax.set_xlabel("optimizer step", fontsize=style.LABEL_SIZE, color=style.INK)
    if best is not None:
        mark = Line2D([], [], color=style.GREY, linewidth=0.9, linestyle=":", label=f"best step: {best}")
        style.figure_legend(figure, [mark])
    return figure


def _best_step(rows: Rows) -> int | None:
    """The step after the first with the highest true win rate; None without any."""
    readings = [(value, -step) for step, value in zip(*style.series(rows, _WIN), strict=True) if step > 0]
    return int(-max(readings)[1]) if readings else None


def _curves(ax: Axes) -> list[Any]:
    return [line for line in ax.get_lines() if line.get_gid() == "curve"]


def _curve(
    ax: Axes, rows: Rows, key: str, colour: str, label: str | None = None, change: Callable[[float], float] = float,
    *, dash: str = "-", width: float = 1.6,
) -> None:  # fmt: skip
    """A line of `change` of the metric against steps."""
    steps, values = style.series(rows, key, change)
    if not steps:
        return
    # With few steps show the points: a line alone would hide a single one.
    marker = "o" if len(steps) <= 12 else None
    ax.plot(steps, values, color=colour, linewidth=width, linestyle=dash, marker=marker, markersize=3, label=label,
            gid="curve")  # fmt: skip


def _band(ax: Axes, rows: Rows, key: str, colour: str, ends: tuple[str, str] = ("p10", "p90")) -> None:
    """The range between two keys: the 10th and 90th percentile over the probe pairs, or the ends of an interval."""
    low, high = (dict(zip(*style.series(rows, f"{key}/{end}"), strict=True)) for end in ends)
    steps = sorted(low.keys() & high.keys())
    if steps:
        ax.fill_between(steps, [low[s] for s in steps], [high[s] for s in steps], color=colour, alpha=0.14, linewidth=0)


def _displacement(ax: Axes, rows: Rows) -> None:
    for side, colour, dash in _SIDES:
        _band(ax, rows, f"displacement/{side}", colour)
        _curve(ax, rows, f"displacement/{side}", colour, side, dash=dash)
    style.reference_line(ax, 0.0)
    band = " (10-90 % of pairs)" if ax.collections else ""
    style.panel(ax, f"Displacement{band}", "nats per token since step 0")


def _margin(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "rewards/margins", style.INK)
    style.reference_line(ax, 0.0)
    style.panel(ax, "Reward margin", "chosen minus rejected")


def _shares(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "rewards/accuracies", style.INK, "in order by reward (ties half)")
    _curve(ax, rows, "displacement/share_chosen_down", style.PURPLE, "chosen displaced", dash="--")
    low = -0.02
    if any(style.number(row.get(_IDEALISED)) is not None for row in rows):
        _curve(ax, rows, "ranking/accuracy", style.BLUE, "in order by log-prob", dash="-.")
        _curve(ax, rows, _IDEALISED, style.BLUE, "the same at DPO's optimum", dash=":", width=1.0)
        low = -0.75  # room for the legend of four curves, which may be anywhere between 0 and 1
    ax.set_ylim(low, 1.02)
    ax.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    style.panel(ax, "Shares of the probe pairs", "share of pairs")


def _gradient(ax: Axes, rows: Rows) -> None:
    for side, colour, dash in _SIDES:
        _curve(ax, rows, f"gradient_weight/{side}", colour, side, abs, dash=dash)
    style.from_zero(ax)
    style.panel(ax, "Gradient weight", "size of the mean dL/ds")


def _win_rate(ax: Axes, rows: Rows) -> None:
    _band(ax, rows, _WIN, style.GREEN, ("low", "high"))
    _curve(ax, rows, _WIN, style.GREEN)
    style.reference_line(ax, 0.5)
    ax.set_ylim(-0.02, 1.02)
    band = " (95 % over prompts)" if ax.collections else ""
    style.panel(ax, f"True win rate{band}", "share won against the start")


def _length(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "glassbox/length", style.GREEN)
    style.from_zero(ax)
    style.panel(ax, "Length of the sampled answers", "tokens")


def _loss(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "train/loss", style.INK, width=1.0)
    style.panel(ax, "Training loss", "loss of the batch")


def _kl(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "kl/reference", style.INK)
    style.reference_line(ax, 0.0)
    style.panel(ax, "KL to the start", "nats per token")


def _norm(ax: Axes, rows: Rows) -> None:
    _curve(ax, rows, "train/grad_norm", style.INK, width=1.0)
    style.from_zero(ax)
    style.panel(ax, "Gradient norm, before clipping", "norm")

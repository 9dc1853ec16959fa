"""The figure of win rate against KL over all points of a sweep, with its frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alphapo_cli.plots import style
from alphapo_cli.plots.sweep_curves import SweepCurve, is_over_alpha, value_colours


@dataclass(frozen=True)
class FrontierPath:
    """One point of a sweep: a cell of it, for its label and colour; its models in order of training; its interval.

    Attributes:
        cell: any cell of the point.
        places: (KL in nats per token, win rate) of its models; the last is that of the end of training.
        interval: 95 % interval of the win rate at the end; None where it is not known.
        on_front: whether it is on the frontier.
    """

    cell: SweepCurve
    places: Sequence[tuple[float, float]]
    interval: tuple[float, float] | None
    on_front: bool


def frontier_figure(paths: Sequence[FrontierPath], name: str = "alpha", over: str = "") -> Figure:
    """Draw the win rate against the KL from the start.

    A thin path leads through the models of each point to the end of its training (filled; with a ring where it is on the
    frontier). The stepped line is the frontier: at no KL as small does another end, or the start, win as much.

    Args:
        paths: the points.
        name: the swept key.
        over: what the intervals are over.

    Returns:
        A figure of one panel.
    """
    figure, (ax,) = style.new_figure(1, 1, 4.2, f"Win rate against distance from the start, by {name}")
    cells = [path.cell for path in paths]
    colour_of = value_colours(cells)
    for path in paths:
        colour = colour_of(path.cell)
        xs, ys = zip(*path.places, strict=True)
        label = " ".join(filter(None, (path.cell.label, path.cell.series)))
        if len(xs) > 1:
            ax.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.6, marker="o", markersize=1.8, gid="path")
        if path.interval is not None:
            low, high = path.interval
            ax.plot([xs[-1]] * 2, [low, high], color=colour, linewidth=0.9, gid="interval")
        ax.plot(xs[-1], ys[-1], "o", color=colour, markersize=5.5, zorder=3, label=label, gid="end")
        if path.on_front:
            ax.plot(xs[-1], ys[-1], "o", color=style.INK, markerfacecolor="none", markersize=8.5, zorder=4, gid="front")
    ends = sorted(path.places[-1] for path in paths if path.on_front)
    if ends:
        right = max(x for path in paths for x, _ in path.places)
        ax.step([*(x for x, _ in ends), max(right, ends[-1][0])], [*(y for _, y in ends), ends[-1][1]], where="post",
                color=style.INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2, gid="frontier")  # fmt: skip
    style.reference_line(ax, 0.5)
    ax.set_ylim(-0.02, 1.02)
    bars = f"bars: 95 % over {over}" if over and any(path.interval for path in paths) else ""
    style.panel(ax, bars, "share of prompts won", "KL to the start, nats per token")
    handles, _ = ax.get_legend_handles_labels()
    if len(handles) > style.MANY and is_over_alpha(cells):
        style.colour_bar(figure, [ax], [cell.alpha for cell in cells if cell.alpha is not None], name)
    else:
        style.beside_or_below(figure, ax, handles)
    if ends:
        mark = Line2D([], [], color=style.INK, linewidth=0.8, linestyle=(0, (4, 3)), marker="o", markerfacecolor="none",
                      markersize=7, label="frontier: no other end of training wins as much at a KL as small")  # fmt: skip
        style.figure_legend(figure, [mark])
    return figure

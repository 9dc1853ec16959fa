"""The figure of a run that was evaluated at several steps: its outcome against step, KL and displacement."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphapo_cli.plots import style

Rows = Sequence[Mapping[str, Any]]
# The outcome that is drawn: the first of these that every evaluation has, its title, and its shade of meaning.
OUTCOMES = (
    ("eval/length_controlled_winrate", "Length-controlled win rate", style.BLUE),
    ("eval/win_rate", "Win rate", style.GREEN),
)


def over_training(rows: Rows, path: str | os.PathLike[str], title: str, level: str) -> None:
    """Save `over_training_figure` as a PNG at `path`."""
    style.save(over_training_figure(rows, title, level), path)


def over_training_figure(rows: Rows, title: str, level: str) -> Figure:
    """Draw the win rate of the models of one run against the step, the KL to the reference and the displacement.

    Over-optimisation is where the middle panel turns down: more KL, fewer wins.

    Args:
        rows: "step", "metrics" and "intervals" of the evaluation (rates from 0 to 1) and "probe" of the same step.
        title: the figure's title.
        level: confidence of the intervals and what they are over: "95 % over instructions".

    Returns:
        A figure of three panels; one without values says so.
    """
    figure, axes = style.new_figure(1, 3, 2.9, title, sharey=True)
    known = [(key, label, colour) for key, label, colour in OUTCOMES if all(key in row["metrics"] for row in rows)]
    key, label, colour = known[0] if known else OUTCOMES[-1]
    n = {int(row["metrics"]["eval/n_total"]) for row in rows if row["metrics"].get("eval/n_total")}
    over = f", n = {', '.join(map(str, sorted(n)))}" if n else ""
    ends = f" ({level}{over})" if any(row.get("intervals") for row in rows) else over
    panels = (
        ("optimizer step", "step", None),
        ("KL to the reference, nats per token", "probe", "kl/reference"),
        ("displacement of chosen, nats per token (axis reversed)", "probe", "displacement/chosen"),
    )
    for ax, (x_label, part, probe) in zip(axes, panels, strict=True):
        _panel(
            ax,
            rows,
            key,
            colour,
            lambda row, part=part, probe=probe: row[part] if probe is None else row[part].get(probe),
        )
        style.reference_line(ax, 0.5)
        style.panel(ax, "", "", x_label)
    axes[2].invert_xaxis()  # so that training goes to the right in all three
    axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylim(-0.02, 1.02)
    style.panel(axes[0], f"{label} against the reference{ends}", "share of prompts won", panels[0][0])
    return figure


def _panel(ax: Axes, rows: Rows, key: str, colour: str, place: Any) -> None:
    """The outcome at each row's place, joined in the order of training, each point named by its step."""
    points = []
    for row in rows:
        x, y = style.number(place(row)), style.number(row["metrics"].get(key))
        if x is not None and y is not None:
            low, high = row.get("intervals", {}).get(key) or (y, y)
            points.append((x, y, max(y - low, 0.0), max(high - y, 0.0), int(row["step"])))
    if not points:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=style.GREY, fontsize=8)
        return
    xs, ys, below, above, steps = zip(*points, strict=True)
    ax.errorbar(
        xs, ys, yerr=[below, above], color=colour, marker="o", markersize=3.5, linewidth=1.4, elinewidth=0.8, capsize=2
    )
    for x, y, step in zip(xs, ys, steps, strict=True):
        ax.annotate(str(step), (x, y), xytext=(3, 4), textcoords="offset points", fontsize=6.5, color=style.GREY)

"""The picture of one measurement: which way both answers of each pair went, and how a score of the pairs foretold it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alphapo_cli.plots import style

Numbers = npt.NDArray[np.float64]
_SHOWN = (
    ("ches_normalised", "CHES, length-normalised"),
    ("edit_distance", "edit distance over longer length"),
)


def measured_picture(moved: Numbers, scores: Mapping[str, Numbers], path: str | os.PathLike[str], title: str) -> None:
    """Save `measured_figure` as a PNG at `path`."""
    style.save(measured_figure(moved, scores, title), path)


def measured_figure(moved: Numbers, scores: Mapping[str, Numbers], title: str) -> Figure:
    """Draw the displacement of both answers against each other, and that of the chosen one against two scores.

    Args:
        moved: [2, P] displacement of chosen and rejected answers, nats per token; NaN for an absent one.
        scores: name -> [P].
        title: the figure's title.

    Returns:
        A figure of three panels.
    """
    figure, axes = style.new_figure(1, 3, 3.1, title)
    both = np.isfinite(moved).all(axis=0)
    _points(axes[0], moved[1][both], moved[0][both], style.INK)
    style.reference_line(axes[0], 0.0)
    axes[0].axvline(0.0, color=style.GREY, linewidth=0.8, zorder=1)
    style.panel(axes[0], "Displacement of each pair", "chosen, nats per token", "rejected, nats per token")
    for ax, (name, label) in zip(axes[1:], _SHOWN, strict=True):
        values = scores.get(name, np.full(moved.shape[1], np.nan))
        known = np.isfinite(values) & np.isfinite(moved[0])
        _points(ax, values[known], moved[0][known], style.CHOSEN)
        style.reference_line(ax, 0.0)
        style.panel(ax, f"By {name}", "chosen, nats per token", label)
    return figure


def _points(ax: Axes, x: Numbers, y: Numbers, colour: str) -> None:
    if x.size:
        ax.scatter(x, y, s=9, color=colour, alpha=0.45, linewidths=0, zorder=2)
    else:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=style.GREY, fontsize=8)

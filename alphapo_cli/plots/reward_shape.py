"""The picture of an objective's reward shape, and where on it the answers' scores are."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from alphapo_cli.plots import style

Numbers = npt.NDArray[np.float64]
_BINS = 40


@dataclass(frozen=True)
class RewardShape:
    """A reward as a function of the score, and the scores of P pairs under the start and now."""

    grid: Numbers  # [N] scores
    reward: Numbers  # [N] beta h(s)
    slope: Numbers  # [N] beta h'(s)
    start: Numbers  # [2, P] scores of chosen and rejected answers, NaN for absent ones
    now: Numbers  # [2, P]


def reward_shape_picture(shape: RewardShape, path: str | os.PathLike[str], title: str) -> None:
    """Save `reward_shape_figure` as a PNG at `path`."""
    style.save(reward_shape_figure(shape, title), path)


def reward_shape_figure(shape: RewardShape, title: str) -> Figure:
    """Draw reward, its slope, and histograms of the scores on one axis of scores.

    Args:
        shape: what is drawn.
        title: the figure's title.

    Returns:
        A figure of three panels.
    """
    figure, axes = style.new_figure(1, 3, 3.1, title, sharex=True)
    for ax, values, name in (
        (axes[0], shape.reward, "Reward"),
        (axes[1], shape.slope, "Slope: what a score's change is worth"),
    ):
        ax.plot(shape.grid, values, color=style.INK, linewidth=1.6)
        style.panel(ax, name, "", "score")
    bins = np.linspace(shape.grid[0], shape.grid[-1], _BINS + 1).tolist()
    for side, name, colour in ((0, "chosen", style.CHOSEN), (1, "rejected", style.REJECTED)):
        start, now = (values[side][np.isfinite(values[side])] for values in (shape.start, shape.now))
        axes[2].hist(start, bins, histtype="step", color=colour, linewidth=1.0, linestyle="--", label=f"{name}, start")
        axes[2].hist(now, bins, color=colour, alpha=0.35, label=f"{name}, now")
    style.panel(axes[2], "Where the answers are", "answers", "score")
    style.legend(axes[2])
    return figure

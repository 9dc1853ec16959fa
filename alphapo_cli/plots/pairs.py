"""The picture of a set of pairs: margins, lengths, and what became of the prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from alphapo_cli.plots import style

_REASONS = 6


def pairs_picture(
    margins: Sequence[float], lengths: tuple[Sequence[int], Sequence[int]], outcome: Mapping[str, int],
    path: str | os.PathLike[str], title: str,
) -> None:  # fmt: skip
    """Save `pairs_figure` as a PNG at `path`."""
    style.save(pairs_figure(margins, lengths, outcome, title), path)


def pairs_figure(
    margins: Sequence[float], lengths: tuple[Sequence[int], Sequence[int]], outcome: Mapping[str, int], title: str
) -> Figure:
    """Draw a set of pairs.

    Args:
        margins: of the pairs that have one.
        lengths: characters of the chosen and of the rejected answers.
        outcome: number of prompts with pairs, and of those without by reason.
        title: of the figure.

    Returns:
        The figure.
    """
    figure, (left, middle, right) = style.new_figure(1, 3, 2.7, title)
    if margins:
        left.hist(margins, bins=24, color=style.INK)
    left.set_xlabel("margin")
    left.set_ylabel("pairs")
    for values, colour, label in zip(lengths, (style.CHOSEN, style.REJECTED), ("chosen", "rejected"), strict=True):
        if values:
            middle.hist(values, bins=24, histtype="step", color=colour, label=label)
    middle.set_xlabel("characters")
    middle.legend(fontsize=style.TICK_SIZE, frameon=False)
    shown = dict(list(outcome.items())[: _REASONS + 1])
    right.barh(range(len(shown)), list(shown.values()), color=style.GREY)
    right.set_yticks(range(len(shown)), [text[:28] for text in shown])
    right.invert_yaxis()
    right.set_xlabel("prompts")
    return figure

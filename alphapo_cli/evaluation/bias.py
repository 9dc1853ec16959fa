"""Win rate by length difference, which shows a length bias of the judge or the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array
from alphapo_cli.evaluation.winrate import percent_interval


@dataclass(frozen=True)
class LengthBin:
    """Rows whose length difference (model minus reference, characters) is in [shortest, longest]; rates in percent.

    `interval`: of the win rate, over instructions.
    """

    shortest: int
    longest: int
    n: int
    win_rate: float
    standard_error: float | None
    interval: tuple[float, float] | None


def length_bins(
    lengths: Sequence[int], reference_lengths: Sequence[int], p: Array, bins: int, confidence: float
) -> list[LengthBin]:
    """Win rate in quantile bins of the length difference; rows with equal differences share a bin.

    Args:
        lengths: [n] characters of the model's outputs.
        reference_lengths: [n] characters of the reference's outputs.
        p: [n] the model's share of the win; NaN rows are left out.
        bins: most bins.
        confidence: of the intervals.

    Returns:
        Non-empty bins, from the shortest outputs relative to the reference to the longest.
    """
    judged = ~np.isnan(p)
    difference = (np.asarray(lengths) - np.asarray(reference_lengths))[judged]
    share = p[judged]
    if not len(share):
        return []
    edges = np.unique(np.quantile(difference, np.linspace(0, 1, bins + 1)))
    which = np.searchsorted(edges[1:-1], difference, side="left")
    rows = []
    for k in np.unique(which):
        d, s = difference[which == k], share[which == k]
        error = 100.0 * float(np.std(s, ddof=1)) / math.sqrt(len(s)) if len(s) > 1 else None
        bounds = percent_interval(s, confidence)
        rows.append(LengthBin(int(d.min()), int(d.max()), len(s), 100.0 * float(np.mean(s)), error, bounds))
    return rows

"""Win rate by difference in length: does the judge (or the model) live off longer answers?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array


@dataclass(frozen=True)
class LengthBin:
    """Rows whose length difference (model minus reference, characters) is in [shortest, longest]; percent."""

    shortest: int
    longest: int
    n: int
    win_rate: float
    standard_error: float | None


def length_bins(lengths: Sequence[int], reference_lengths: Sequence[int], p: Array, bins: int) -> list[LengthBin]:
    """About equally many judged rows a bin, from "much shorter" to "much longer"; equal differences stay together.

    `p`: the model's share of the win [n], NaN rows left out.
    """
    judged = ~np.isnan(p)
    difference = (np.asarray(lengths) - np.asarray(reference_lengths))[judged]
    share = p[judged]
    if not len(share):
        return []
    edges = np.unique(np.quantile(difference, np.linspace(0, 1, bins + 1)))
    which = np.searchsorted(edges[1:-1], difference, side="left")
    made = []
    for k in np.unique(which):
        d, s = difference[which == k], share[which == k]
        error = 100.0 * float(np.std(s, ddof=1)) / math.sqrt(len(s)) if len(s) > 1 else None
        made.append(LengthBin(int(d.min()), int(d.max()), len(s), 100.0 * float(np.mean(s)), error))
    return made

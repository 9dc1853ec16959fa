"""What pictures and pages draw of a reward shape, computed alike. Imports no matplotlib."""

from __future__ import annotations

import numpy as np

from alphapo_cli.plots.shape_data import Field, Numbers, RewardShape

DECADES = 4.0  # of the sizes that arrows show: what is smaller looks like the smallest


def arrows_of(field: Field, count: int, *, probability: bool = False) -> tuple[Numbers, Numbers, Numbers]:
    """Some nodes of a field, and which way down the loss goes there.

    Args:
        field: the field.
        count: about as many along each axis.
        probability: whether the derivatives are by p = exp(s) in place of s.

    Returns:
        Places [M, 2] as (chosen, rejected) score, unit vectors [M, 2], sizes [M]: the length of the vector of both
        derivatives.
    """
    step = max(1, round((len(field.at) - 1) / max(count - 1, 1)))
    at = field.at[::step]
    x, y = (axis.ravel() for axis in np.meshgrid(at, at))
    down = -np.stack([field.chosen[::step, ::step].ravel(), field.rejected[::step, ::step].ravel()])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if probability:
            # Of summed log-probs e^-s is beyond any float: directions from the larger of the two, sizes from logarithms.
            scores = np.stack([x, y])
            factor = np.where(down == 0, -np.inf, -scores).max(axis=0)
            vectors = np.where(down == 0, 0.0, down * np.exp(-scores - np.where(np.isfinite(factor), factor, 0.0)))
            sizes = np.exp(np.log(np.hypot(*vectors)) + factor)
        else:
            vectors, sizes = down, np.hypot(*down)
        directions = vectors / np.hypot(*vectors)
    return np.stack([x, y], 1), np.nan_to_num(directions.T), np.nan_to_num(sizes, nan=0.0)


def levels(sizes: Numbers) -> Numbers:
    """Where each size is on a logarithmic scale from 10^-`DECADES` of the largest, or the smallest, to the largest: 0 to 1."""
    shown = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not shown.size:
        return np.zeros_like(sizes)
    high = np.log(shown.max())
    low = max(np.log(shown.min()), high - DECADES * np.log(10.0))
    with np.errstate(divide="ignore"):
        place = (np.log(sizes) - low) / max(high - low, 1e-12)
    found: Numbers = np.clip(place, 0.0, 1.0)
    return found


def words_of(found: RewardShape, side: int) -> str:
    """Mean size of the gradient weight and share of saturated answers of a side, at step 0 and at the end."""
    weights, shares = found.weights[side], found.saturated[side]
    if not np.isfinite(weights[[0, -1]]).all():
        return "not known"
    words = f"{abs(weights[0]):.2g} \u2192 {abs(weights[-1]):.2g}"
    if np.isfinite(shares[[0, -1]]).all():
        words += f", saturated {percent(shares[0]).removesuffix(' %')} \u2192 {percent(shares[-1])}"
    return words


def percent(share: float) -> str:
    """A share in per cent; what is not quite 0 or 100 does not read as it."""
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "<1 %"
    if rounded == 100 and share < 1:
        return ">99 %"
    return f"{rounded} %"

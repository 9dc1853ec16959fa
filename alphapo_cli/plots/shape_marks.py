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
        Places [M, 2] as (chosen, rejected) score, unit vectors [M, 2], log sizes [M]: the natural logarithm of the length of
        the vector of both derivatives, -inf where it is 0. Of summed log-probs the length by p is beyond any float.
    """
    step = max(1, round((len(field.at) - 1) / max(count - 1, 1)))
    at = field.at[::step]
    x, y = (axis.ravel() for axis in np.meshgrid(at, at))
    down = -np.stack([field.chosen[::step, ::step].ravel(), field.rejected[::step, ::step].ravel()])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if probability:
            # Directions from the larger of the two, sizes from logarithms.
            scores = np.stack([x, y])
            factor = np.where(down == 0, -np.inf, -scores).max(axis=0)
            vectors = np.where(down == 0, 0.0, down * np.exp(-scores - np.where(np.isfinite(factor), factor, 0.0)))
        else:
            vectors, factor = down, np.zeros_like(x)
        lengths = np.hypot(*vectors)
        directions, logs = vectors / lengths, np.log(lengths) + factor
    return np.stack([x, y], 1), np.nan_to_num(directions.T), np.where(np.isnan(logs), -np.inf, logs)


def levels(log_sizes: Numbers) -> Numbers:
    """Where each size is on a scale from 10^-`DECADES` of the largest, or the smallest, to the largest: 0 to 1, by logarithms."""
    shown = log_sizes[np.isfinite(log_sizes)]
    if not shown.size:
        return np.zeros_like(log_sizes)
    high = shown.max()
    low = max(shown.min(), high - DECADES * np.log(10.0))
    found: Numbers = np.clip((log_sizes - low) / max(high - low, 1e-12), 0.0, 1.0)
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

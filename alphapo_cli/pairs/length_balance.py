"""The weight of length that makes chosen and rejected answers equally long on average (DICE, arXiv 2406.09760, eq. 6).

With s - weight x length in place of the score s, best against worst, the mean of len(chosen) - len(rejected) never rises
with the weight. DICE searches a grid from 0 to 1; bisection finds the step at which it passes zero, also above 1.
"""

from __future__ import annotations

from collections.abc import Callable

_STEPS = 60


def balance(gap: Callable[[float], float]) -> float:
    """Find the weight with the smallest absolute gap.

    Args:
        gap: weight -> mean length of chosen minus mean length of rejected answers; it does not rise.

    Returns:
        The weight, at least 0; 0 where the gap is not positive to begin with.
    """
    low, high = 0.0, 1.0
    if gap(low) <= 0:
        return low
    while gap(high) > 0:
        if high > 1e9:  # lengths are equal within every prompt, so no weight changes anything
            return 0.0
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if gap(middle) > 0:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda weight: (abs(gap(weight)), weight))

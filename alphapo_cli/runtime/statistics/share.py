"""The interval of a share of which only the number of outcomes is known, without numpy: listings print it."""

from __future__ import annotations

import math

from alphapo_cli.runtime.statistics.student import critical_value


def share_interval(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share of which only the number of outcomes is known: `mean_interval` of as many wins and losses.

    Outcomes of 0 and 1 have the largest variance that outcomes in [0, 1] with that mean can have, so where draws count
    half the interval is wider than it has to be.

    Args:
        share: the mean outcome, 0 to 1.
        n: how many outcomes, above 0.
        confidence: as for `mean_interval`.

    Returns:
        The ends.
    """
    return interval_ends(share, n, critical_value(confidence, int(n) + 1))


def interval_ends(mean: float, flips: float, c: float) -> tuple[float, float]:
    """The ends of the interval of a mean: every t with T(t) at most c, see `bounded_mean`.

    Args:
        mean: 0 to 1.
        flips: the effective number of coin flips, above 0.
        c: the critical value of T.

    Returns:
        The ends, 0 to 1.
    """
    spread = c * math.sqrt(mean * (1.0 - mean) / flips + (c / (2.0 * flips)) ** 2)
    middle = mean + c**2 / (2.0 * flips)
    # The mean itself is inside but for round-off.
    ends = (min((middle - spread) / (1.0 + c**2 / flips), mean), max((middle + spread) / (1.0 + c**2 / flips), mean))
    return max(ends[0], 0.0), min(ends[1], 1.0)

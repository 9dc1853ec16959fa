"""Win rates as AlpacaEval counts them.

A preference x is in [1, 2], from reference better to model better; p = x - 1 is the model's share of the win. Rows
without a judgement (null) are left out: they are not draws. Source: alpaca_eval 0.6.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphapo_cli.runtime.statistics.bounded_mean import mean_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WinRate:
    """Rates and standard error in percent, and counts of rows."""

    win_rate: float
    standard_error: float | None  # None with a single row
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float


def shares(preferences: Sequence[float | None]) -> Array:
    """The model's share of the win p = x - 1, [n]; NaN without a judgement."""
    return np.array([math.nan if x is None else x - 1.0 for x in preferences], dtype=np.float64)


def win_rates(preferences: Sequence[float | None]) -> WinRate:
    """Win rate 100 mean(p), its standard error, and counts.

    Args:
        preferences: [n] x of each row, None without a judgement. A win is x > 1.5, a draw x = 1.5.

    Returns:
        Rates in percent, counts of judged rows.

    Raises:
        ValueError: no row has a judgement.
    """
    p = shares(preferences)
    p = p[~np.isnan(p)]
    n = len(p)
    if n == 0:
        raise ValueError("no judgement in any row")
    wins, losses = int(np.sum(p > 0.5)), int(np.sum(p < 0.5))
    draws = n - wins - losses
    return WinRate(
        win_rate=100.0 * float(np.mean(p)),
        standard_error=100.0 * float(np.std(p, ddof=1)) / math.sqrt(n) if n > 1 else None,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=n,
        discrete_win_rate=100.0 * (wins + draws / 2) / n,
    )


def percent_interval(p: Array, confidence: float) -> tuple[float, float] | None:
    """The interval of the win rate in percent from p [n], over instructions; None without a judgement."""
    bounds = mean_interval(p, confidence)
    return None if bounds is None else (100.0 * bounds[0], 100.0 * bounds[1])


def average_length(outputs: Sequence[str]) -> int:
    """Mean number of characters (code points), rounded down."""
    return sum(map(len, outputs)) // len(outputs)

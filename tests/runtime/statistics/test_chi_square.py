"""The chi-square distribution against scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from alphapo_cli.runtime.statistics.chi_square import lower_tail, quantile


@pytest.mark.parametrize("freedom", [0.4, 0.8, 1.6, 2.0, 3.7, 24.0, 600.0])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.98])
def test_quantiles_are_scipys(freedom, share):
    x = stats.chi2.ppf(share, freedom)
    # Bisection in the logarithm ends below 1e-13 of x; the rest is rounding of sums of hundreds of terms.
    assert quantile(share, freedom) == pytest.approx(x, rel=1e-10)
    assert lower_tail(x, freedom) == pytest.approx(share, rel=1e-10)


def test_below_zero_there_is_nothing():
    assert lower_tail(0.0, 2.0) == lower_tail(-1.0, 2.0) == 0.0

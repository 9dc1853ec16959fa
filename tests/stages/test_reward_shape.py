"""The picture of the reward: on a finished measurement, against finite differences and the printed formula."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from alphapo_cli.stages.measuring.pictures import reward_shape
from tests import tiny


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.25])
def test_reward_and_slope_are_those_of_the_formula(alpha):
    objective = tiny.objective("objective=alphapo", f"objective.shape.alpha={alpha}", "objective.beta=2")
    scores = np.array([[-1.0, -2.0, 0.0], [-3.0, -0.5, -1.5]])
    lengths = np.array([[3.0, 4.0, 0.0], [2.0, 2.0, 2.0]])
    values = SimpleNamespace(scores=scores, lengths=lengths)
    measurement = SimpleNamespace(objective=objective, measured=SimpleNamespace(context=objective.start))
    shape = reward_shape(measurement, SimpleNamespace(start=values, now=values))
    assert math.isnan(shape.now[0, 2])  # an absent answer
    assert (shape.grid[0], shape.grid[-1]) == (pytest.approx(-3.125), pytest.approx(-0.375))
    for s, reward, slope in zip(shape.grid, shape.reward, shape.slope, strict=True):
        expected = s if alpha == 0 else (1 - math.exp(-alpha * s)) / alpha
        assert reward == pytest.approx(2 * expected, rel=1e-12)
        assert slope == pytest.approx(2 * math.exp(-alpha * s), rel=1e-12)

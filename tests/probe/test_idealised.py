"""The ranking accuracy of DPO's optimum (2405.19534, corollary 3.3), against its formula in plain floats."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.probe.idealised import idealised_accuracies
from tests import tiny
from tests.probe.test_displacement import values


def pairs(**columns: list[float]) -> TokenPairs:
    drawn = tiny.token_pairs(len(next(iter(columns.values()))), seed=1)
    return replace(drawn, columns={name: np.array(column) for name, column in columns.items()})


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_it_is_the_papers_formula(beta: float) -> None:
    rng = Random(3)
    chances = [rng.uniform(0.5, 1) for _ in range(40)]
    start = values(rng, 40)
    right, normalised = [], []
    for i, p in enumerate(chances):
        chosen, rejected = (float(start.sums[side][i]) for side in (0, 1))
        n_chosen, n_rejected = (float(start.lengths[side][i]) for side in (0, 1))
        odds = (p / (1 - p)) ** (1 / beta)
        right.append(math.exp(chosen) / math.exp(rejected) * odds > 1)
        normalised.append(math.exp(chosen / n_chosen) / math.exp(rejected / n_rejected) * odds > 1)
    found = idealised_accuracies(
        start, pairs(win_probability=chances), tiny.objective("objective=dpo", f"objective.beta={beta}")
    )
    assert found["ranking/idealised_accuracy"] == sum(right) / 40
    assert found["ranking/idealised_accuracy_length_normalised"] == sum(normalised) / 40
    assert 0.5 < sum(right) / 40 < 1  # else the formula would not be seen


def test_certain_even_and_missing_preferences() -> None:
    start = values(Random(0), 5)
    sums = np.array([[-9.0, -9.0, -9.0, -9.0, -9.0], [-1.0, -1.0, -9.0, -1.0, -1.0]])
    lengths = np.array([[3.0, 3, 3, 3, 3], [3, 3, 3, 3, 0]])  # the last row has no rejected answer
    start = replace(start, sums=sums, lengths=lengths)
    data = pairs(win_probability=[1.0, 0.5, 0.5, math.nan, 1.0])
    found = idealised_accuracies(start, data, tiny.objective("objective=dpo"))
    assert found["ranking/idealised_accuracy"] == (1 + 0 + 0.5) / 3


def test_the_column_and_who_has_an_optimum_of_dpos_kind() -> None:
    start = values(Random(0), 3)
    data = pairs(win_probability=[0.9, 0.9, 0.9], mine=[0.1, 0.1, 0.1])
    assert idealised_accuracies(start, data, tiny.objective("objective=simpo")) == {}  # reads no reference
    assert idealised_accuracies(start, pairs(other=[0.9] * 3), tiny.objective("objective=dpo")) == {}
    labelled = tiny.objective("objective=dpo", "objective.label_column=mine", "objective.beta=0.001")
    assert idealised_accuracies(start, data, labelled)["ranking/idealised_accuracy"] == 0  # 2,200 nats the other way

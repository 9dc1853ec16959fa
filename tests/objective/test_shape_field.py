"""Shape, slope and gradient field against plain floats and finite differences of plain losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alphapo_cli.objective import reward_shape
from alphapo_cli.objective.catalog import methods
from tests import tiny

# Of central differences in float64: their error is about STEP^2 h'''/6 and 1e-16 h/STEP, both below 1e-8 here.
STEP = 1e-5
SCORES = np.array([-6.0, -2.5, -0.75, 0.0, 0.4, 3.0])


def power(alpha, sign):
    """h of the power shape: sign -1 is AlphaPO's convention, (1 - e^(-alpha s))/alpha."""
    return lambda s: s if alpha == 0 else math.expm1(sign * alpha * s) / (sign * alpha)


def logistic(margin):
    return math.log1p(math.exp(-margin)) if margin > 0 else -margin + math.log1p(math.exp(margin))


# objective line -> (h, beta, gamma, the loss of a margin, beta)
CASES = {
    **{
        f"objective=alphapo objective.shape.alpha={alpha} objective.beta=2.5": (power(alpha, -1), 2.5, 0.25, logistic)
        for alpha in (-0.5, 0.0, 0.5)
    },
    "objective=simpo": (lambda s: s, 2.5, 0.25, logistic),
    "objective=dpo": (lambda s: s, 0.1, 0.0, logistic),
    "objective=alphapo_ratio objective.shape.alpha=0.5": (power(0.5, 1), 0.1, 0.0, logistic),
    "objective=ipo": (lambda s: s, 0.1, 0.0, lambda m: (m / 0.1 - 1 / 0.2) ** 2),
    "objective=dpo objective/shape=tanh": (lambda s: 5 * math.tanh(s / 5), 0.1, 0.0, logistic),
    "objective=dpo objective/shape=clipped objective.shape.low=-2 objective.shape.high=2": (
        lambda s: min(max(s, -2.0), 2.0), 0.1, 0.0, logistic,
    ),
}  # fmt: skip


def objective(line):
    return tiny.objective(*line.split())


@pytest.mark.parametrize("line", CASES)
def test_shape_and_slope_are_those_of_the_formula(line):
    h = CASES[line][0]
    shape, slope = reward_shape.curve(objective(line), SCORES)
    assert shape.tolist() == pytest.approx([h(s) for s in SCORES], rel=1e-12, abs=1e-12)
    differences = [(h(s + STEP) - h(s - STEP)) / (2 * STEP) for s in SCORES]
    assert slope.tolist() == pytest.approx(differences, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("line", CASES)
def test_the_field_is_the_slope_of_the_loss(line):
    h, beta, gamma, link = CASES[line]
    chosen, rejected = np.meshgrid(SCORES, SCORES)

    def loss(w, l):  # noqa: E741
        return link(beta * (h(w) - h(l)) - gamma)

    by_chosen, by_rejected = reward_shape.gradients(objective(line), chosen, rejected)
    assert by_chosen.shape == by_rejected.shape == (6, 6)
    for w, l, found in zip(chosen.ravel(), rejected.ravel(), by_chosen.ravel(), strict=True):  # noqa: E741
        # IPO's loss reaches 1e4, so that its differences are exact to 1e-7 or so.
        assert found == pytest.approx((loss(w + STEP, l) - loss(w - STEP, l)) / (2 * STEP), rel=1e-6, abs=1e-7)
    for w, l, found in zip(chosen.ravel(), rejected.ravel(), by_rejected.ravel(), strict=True):  # noqa: E741
        assert found == pytest.approx((loss(w, l + STEP) - loss(w, l - STEP)) / (2 * STEP), rel=1e-6, abs=1e-7)


def test_the_undecided_weight_is_that_of_a_pair_with_scores_of_zero():
    # beta sigmoid(gamma) on both sides
    found = reward_shape.undecided_weight(objective("objective=alphapo objective.shape.alpha=2"))
    assert found == pytest.approx(2.5 / (1 + math.exp(-0.25)), rel=1e-12)
    # The pulls of APO-down on the chosen side cancel there; the rejected side's, beta/4, remains.
    assert reward_shape.undecided_weight(objective("objective=apo_down")) == pytest.approx(0.1 / 4, rel=1e-12)
    assert reward_shape.undecided_weight(objective("objective=gamma_po")) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sft", "no preference term"),
        ("infonca", "link 'infonca' compares all answers of a row"),
        ("kto", "an answer to another prompt"),
        ("gamma_po", "margin has a memory of training"),
        ("beta_dpo", "margin and weight have a memory of training"),
        ("odpo", "more of a pair than its two scores (score_chosen, score_rejected)"),
        ("r_dpo", "more of a pair than its two scores"),
    ],
)
def test_where_there_is_no_one_field_a_sentence_says_why(name, words):
    assert words in reward_shape.field_obstacle(objective(f"objective={name}"))


# One of every link and shape that has a field; composing a configuration takes a fifth of a second.
FIELDS = ("apo_zero", "cal_dpo", "chi_po", "discopop", "dpop", "exo", "f_dpo_js", "hinge", "kto_constant", "nca_pair",
          "orpo", "sppo_hard")  # fmt: skip


def check_finite(name):
    """Whether the method has a field; its shape rises, and a field of it is finite and not 0."""
    found, at = objective(f"objective={name}"), np.linspace(-8.0, 2.0, 5)
    shape, slope = reward_shape.curve(found, at)
    assert (np.diff(shape) >= 0).all(), name
    assert (slope >= 0).all(), name
    if reward_shape.field_obstacle(found) is not None:
        return False
    field = np.stack(reward_shape.gradients(found, *np.meshgrid(at, at)))
    assert np.isfinite(field).all(), name
    assert np.abs(field).max() > 0, name
    return True


def test_links_and_shapes_have_a_finite_field():
    assert all(check_finite(name) for name in FIELDS)


@pytest.mark.nightly
def test_every_method_has_a_finite_field_or_a_reason():
    assert sum(check_finite(method.name) for method in methods()) > 30


def test_a_schedule_moves_the_shape():
    found = objective("objective=alphapo objective/schedule=linear objective.schedule.start=0 objective.schedule.end=1")
    for progress in (0.0, 0.5, 1.0):
        shape, _ = reward_shape.curve(found, SCORES, replace(found.start, progress=progress))
        assert shape.tolist() == pytest.approx([power(progress, -1)(s) for s in SCORES], rel=1e-12, abs=1e-12)
    moved = objective("objective=alphapo_adaptive")
    context = replace(moved.start, states={"schedule": {"value": torch.tensor(0.5, dtype=torch.float64)}})
    shape, _ = reward_shape.curve(moved, SCORES, context)
    assert shape.tolist() == pytest.approx([power(0.5, -1)(s) for s in SCORES], rel=1e-12, abs=1e-12)

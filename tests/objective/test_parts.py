"""Every shape and link by itself, at its defaults, in plain floats. What reads columns or keeps state is tested elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

import alphapo_cli.objective.build  # noqa: F401  (it fills the tables)
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.part import TABLES
from tests import tiny


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ls(x: float) -> float:
    return math.log(s(x))


# h(s) of a log-ratio.
SHAPES: dict[str, Callable[[float], float]] = {
    "chi": lambda x: x + math.exp(x) - 1,
    "clipped": lambda x: max(-5.0, min(5.0, x)),
    "identity": lambda x: x,
    "js": lambda x: math.log(2 * math.exp(x) / (1 + math.exp(x))),
    "power": lambda x: (math.exp(0.25 * x) - 1) / 0.25,
    "tanh": lambda x: 5 * math.tanh(x / 5),
}
# The loss of a pair with rewards c (chosen) and r (rejected), beta 1.
LINKS: dict[str, Callable[[float, float], float]] = {
    "apo_down": lambda c, r: s(c) + 1 - s(c - r),
    "apo_zero": lambda c, r: 1 - s(c) + s(r),
    "bce": lambda c, r: -ls(c) - ls(-r),
    "calibrated": lambda c, r: -ls(c - r) + ((c - 0.5) ** 2 + (r + 0.5) ** 2) / 2,
    "discopop": lambda c, r: -s(-20 * (c - r)) * ls(c - r) + s(20 * (c - r)) * math.exp(r - c),
    "exo": lambda c, r: s(c - r) * (ls(c - r) - math.log(0.999)) + s(r - c) * (ls(r - c) - math.log(0.001)),
    "focal": lambda c, r: -(s(c - r) ** 0.05) * ls(c - r),
    "hinge": lambda c, r: max(0.0, 1 - c + r),
    "kto": lambda c, r: s(-c) + s(r),
    "logistic": lambda c, r: -ls(c - r),
    "nca": lambda c, r: -ls(c) - (ls(-c) + ls(-r)) / 2,
    "none": lambda c, r: 0.0,
    "sppo": lambda c, r: (c - 0.5) ** 2 + (r + 0.5) ** 2,
    "squared": lambda c, r: (c - r - 0.5) ** 2,
}
POINTS = [-3.1, -1.2, -0.3, 0.2, 0.9, 2.3]
H = 2.0**-13


def slope(f: Callable[[float], float], x: float) -> float:
    """Central differences, extrapolated: error of order h^4, and round-off of f over h, some 1e-12 of values near 1."""
    wide, narrow = (f(x + 2 * H) - f(x - 2 * H)) / (4 * H), (f(x + H) - f(x - H)) / (2 * H)
    return (4 * narrow - wide) / 3


@pytest.mark.parametrize("name", TABLES["shape"])
def test_shape(name: str) -> None:
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    value = TABLES["shape"][name].bind({}).function(x, "log_ratio")
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.tolist() == pytest.approx([SHAPES[name](p) for p in POINTS], rel=1e-12, abs=1e-14)
    assert gradient.tolist() == pytest.approx([slope(SHAPES[name], p) for p in POINTS], rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(
    "name", [n for n, p in TABLES["link"].items() if p.sides == 2 and not p.columns and p.stateful is None]
)
def test_link(name: str) -> None:
    pairs = list(itertools.product(POINTS, POINTS))
    rewards = torch.tensor(pairs, dtype=torch.float64).T.contiguous().requires_grad_(True)
    loss = TABLES["link"][name].bind({})(ObjectiveInputs(rewards, rewards, beta=1.0))
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * rewards.sum(), rewards)
    assert loss.tolist() == pytest.approx([LINKS[name](c, r) for c, r in pairs], rel=1e-12, abs=1e-14)
    by_hand = [(slope(lambda x: LINKS[name](x, r), c), slope(lambda x: LINKS[name](c, x), r)) for c, r in pairs]  # noqa: B023
    assert gradient[0].tolist() == pytest.approx([a for a, _ in by_hand], rel=1e-8, abs=1e-9)
    assert gradient[1].tolist() == pytest.approx([b for _, b in by_hand], rel=1e-8, abs=1e-9)


# Losses that vanish as the margin m = c - r grows, at c = m/2 and r = -m/2, without a difference of near equals.
VANISHING: dict[str, Callable[[float], float]] = {
    "apo_zero": lambda m: 2 / (1 + math.exp(m / 2)),
    "bce": lambda m: 2 * math.log1p(math.exp(-m / 2)),
    # of w = sigmoid(20 m) nothing is left to lack
    "discopop": lambda m: math.exp(-m),
    "focal": lambda m: math.exp(-0.05 * math.log1p(math.exp(-m))) * math.log1p(math.exp(-m)),
    "infonca": lambda m: math.log1p(math.exp(-m)),
    "kto": lambda m: 2 / (1 + math.exp(m / 2)),
    "logistic": lambda m: math.log1p(math.exp(-m)),
    "swepo": lambda m: math.log1p(math.exp(-m)),
}


@pytest.mark.parametrize("name", VANISHING)
@pytest.mark.parametrize("m", [5.0, 17.0, 20.0, 29.0, 31.0, 60.0])
def test_a_small_loss_keeps_float32s_digits(name: str, m: float) -> None:
    rewards = torch.tensor([[m / 2], [-m / 2]], requires_grad=True)
    columns = {"score_chosen": torch.tensor([1.0]), "score_rejected": torch.tensor([0.0])}
    answers = AnswerLogProbs(rewards, torch.ones(2, 1), columns=columns)
    loss = TABLES["link"][name].bind({})(ObjectiveInputs(rewards, rewards, beta=1.0, answers=answers))
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    # e^x moves by |x| roundings of x; a few more operations.
    allowed = (m + 8) * 2.0**-23
    assert loss.item() == pytest.approx(VANISHING[name](m), rel=allowed)
    by_hand = slope(VANISHING[name], m)  # of m alone: half of it comes from either side, and their difference is whole
    assert gradient[0].item() == pytest.approx(by_hand, rel=allowed + 1e-6)
    assert gradient[1].item() == pytest.approx(-by_hand, rel=allowed + 1e-6)


@pytest.mark.parametrize("token_rounding", [0.0, 1e-5, 0.03], ids=["exact", "float32", "bfloat16"])
def test_dpop_is_the_published_loss_in_every_precision(token_rounding: float) -> None:
    """50 max(0, fall of the chosen answer) times beta, whatever the rounding of a log-prob; ties have the mean slope."""
    objective = tiny.objective("objective=dpop")
    falls = torch.arange(-80, 81, dtype=torch.float64) / 20
    sums = torch.stack([-240 - falls, torch.full_like(falls, -250.0)]).requires_grad_()
    reference = torch.stack([torch.full_like(falls, -240.0), torch.full_like(falls, -250.0)])
    answers = AnswerLogProbs(sums, torch.full_like(sums, 200.0), reference, token_rounding=token_rounding)
    loss = objective(answers).loss
    margin = 0.1 * (-falls - 50 * falls.clamp(min=0))
    assert torch.allclose(loss, torch.nn.functional.softplus(-margin), atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), sums)
    exact = -0.1 * torch.sigmoid(-margin) * torch.where(falls > 0, 51.0, 1.0)
    away = falls.abs() > 0.01  # BRANCH_ROUNDING allows 2e-4 * 1.2 * 200**0.5 nats, and the reference as many
    assert torch.allclose(gradient[0][away], exact[away], rtol=1e-9)
    tie = 80  # no fall: the mean of both slopes
    assert falls[tie] == 0
    assert gradient[0][tie].item() == pytest.approx(-0.1 * 0.5 * 26, rel=1e-6)

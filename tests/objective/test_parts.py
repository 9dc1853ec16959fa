"""Every shape and link by itself, at its defaults, in plain floats. What reads columns or keeps state is tested elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from alphapo_cli.objective.inputs import Comparison
from alphapo_cli.objective.part import TABLES


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
    "calibrated": lambda c, r: -ls(c - r) + (c - 0.5) ** 2 + (r + 0.5) ** 2,
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
    "name", [n for n, p in TABLES["link"].items() if p.sides == 2 and not p.columns and p.state is None]
)
def test_link(name: str) -> None:
    pairs = list(itertools.product(POINTS, POINTS))
    rewards = torch.tensor(pairs, dtype=torch.float64).T.contiguous().requires_grad_(True)
    loss = TABLES["link"][name].bind({})(Comparison(rewards, rewards, beta=1.0))
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * rewards.sum(), rewards)
    assert loss.tolist() == pytest.approx([LINKS[name](c, r) for c, r in pairs], rel=1e-12, abs=1e-14)
    by_hand = [(slope(lambda x: LINKS[name](x, r), c), slope(lambda x: LINKS[name](c, x), r)) for c, r in pairs]  # noqa: B023
    assert gradient[0].tolist() == pytest.approx([a for a, _ in by_hand], rel=1e-8, abs=1e-9)
    assert gradient[1].tolist() == pytest.approx([b for _, b in by_hand], rel=1e-8, abs=1e-9)

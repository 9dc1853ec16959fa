"""The power shape: a function with the properties that a reward shape needs, the same one in every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.numerics import LINEAR_FROM, box_cox
from alphapo_cli.objective.parts.shape import identity, power
from tests import tiny

EPS = 2.0**-52
exponents = st.floats(-4, 4).map(lambda k: round(k, 6)).filter(lambda k: k != 0)
scores = st.floats(-1e4, 1e4)


def value_and_slope(x: float, k: float, dtype: torch.dtype = torch.float64) -> tuple[float, float]:
    leaf = torch.tensor(x, dtype=dtype, requires_grad=True)
    y = box_cox(leaf, k)
    (slope,) = torch.autograd.grad(y, leaf)
    return y.item(), slope.item()


def exact(x: float, k: float) -> tuple[float, float]:
    """Value and slope by the definition: (e^{kx} - 1)/k up to |k x| = 30, its tangent beyond."""
    z = k * x
    edge = math.copysign(min(abs(z), 30.0), z)
    return (math.expm1(edge) + math.exp(edge) * (z - edge)) / k, math.exp(edge)


@given(scores, exponents)
@example(-1e4, 4.0)
@example(1e4, 4.0)
@example(-7.5, 4.0)
def test_value_and_slope_are_the_definition(x: float, k: float) -> None:
    value, slope = value_and_slope(x, k)
    expected = exact(x, k)
    # e^z moves by |z| eps when z = k x is rounded; |z| <= 30 where it matters, the rest is a few operations
    assert value == pytest.approx(expected[0], rel=40 * EPS, abs=1e-300)
    assert slope == pytest.approx(expected[1], rel=40 * EPS)


@given(scores, scores, exponents)
def test_increasing(x: float, y: float, k: float) -> None:
    # a gap below the resolution of the function's value cannot show
    assume(y - x > 1e-3)
    low, high = box_cox(torch.tensor([x, y], dtype=torch.float64), k).tolist()
    assert low < high if abs(k) * max(abs(x), abs(y)) < 25 else low <= high


@given(scores, exponents)
def test_slope_is_never_below_its_smallest_and_never_infinite(x: float, k: float) -> None:
    _, slope = value_and_slope(x, k, torch.float32)
    assert math.exp(-30.001) <= slope <= math.exp(30.001)


@given(exponents)
def test_fixes_zero_with_slope_one(k: float) -> None:
    value, slope = value_and_slope(0.0, k)
    assert value == 0
    assert slope == pytest.approx(1, rel=2 * EPS)


@given(exponents, st.sampled_from([-1.0, 1.0]))
def test_continuously_differentiable_where_the_line_begins(k: float, side: float) -> None:
    x = side * LINEAR_FROM / k
    delta = 1e-6 / abs(k)  # k x moves by 1e-6, so e^{k x} by one millionth
    inside, at, outside = (value_and_slope(x * (1 + d), k) for d in (-delta / abs(x), 0.0, delta / abs(x)))
    step = abs(at[1]) * delta
    assert abs(outside[0] - at[0]) == pytest.approx(step, rel=2e-6, abs=8 * EPS * abs(at[0]))
    assert abs(at[0] - inside[0]) == pytest.approx(step, rel=2e-6, abs=8 * EPS * abs(at[0]))
    assert inside[1] == pytest.approx(at[1], rel=2e-6)
    assert outside[1] == pytest.approx(at[1], rel=2e-14)
    # and a line it is: equal steps, equal rises
    far = [box_cox(torch.tensor(x * f, dtype=torch.float64), k).item() for f in (2.0, 3.0, 4.0)]
    assert far[2] - far[1] == pytest.approx(far[1] - far[0], rel=1e-9, abs=1e-9 * abs(at[0]))


@given(st.floats(-1e4, 1e4, width=32), exponents)
def test_float32_is_the_same_function(x: float, k: float) -> None:
    wide, narrow = value_and_slope(x, k), value_and_slope(x, k, torch.float32)
    eps = 2.0**-23
    assert narrow[0] == pytest.approx(wide[0], rel=40 * eps, abs=1e-37)
    assert narrow[1] == pytest.approx(wide[1], rel=40 * eps)


@given(st.floats(-50, 50), st.sampled_from([1e-3, 1e-8, 1e-15, -1e-3, -1e-8, -1e-15]))
def test_small_exponents_approach_the_identity(x: float, k: float) -> None:
    # Taylor with remainder: |BC(x; k) - x - k x^2/2| <= k^2 |x|^3/6 e^{|k x|}; then round-off of a few operations
    value, slope = value_and_slope(x, k)
    remainder = k * k * abs(x) ** 3 / 6 * math.exp(abs(k * x))
    assert abs(value - (x + k * x * x / 2)) <= remainder + 4 * EPS * abs(x) + 1e-300
    assert abs(slope - (1 + k * x)) <= (k * x) ** 2 / 2 * math.exp(abs(k * x)) + 4 * EPS


def test_small_exponents_keep_float32_digits() -> None:
    # e^{kx} - 1 written so would be 0 or 1.2e-7 here: nothing of x would be left
    x = torch.linspace(-8, 8, 101)
    assert torch.allclose(box_cox(x, 1e-8), x, rtol=4 * 2.0**-23, atol=0)


def test_exponents_too_small_for_the_dtype_are_the_identity() -> None:
    # k x of 1e-40 has no float32: without a limit the quotient would be 0/0
    x = torch.linspace(-1e4, 1e4, 101)
    for k in (1e-25, 1e-40, 1e-60, 5e-324):
        assert torch.equal(box_cox(x, k), x)


@pytest.mark.parametrize("z", [-5.0, -12.0, -16.0, -20.0, -29.0])
def test_slope_far_below_zero_keeps_float32_digits(z: float) -> None:
    # the derivative of expm1 is e^z, not (e^z - 1) + 1
    _, slope = value_and_slope(z, 1.0, torch.float32)
    assert slope == pytest.approx(math.exp(z), rel=4 * 2.0**-23)


def test_zero_exponent_is_the_identity_bitwise() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 100
        for kind in ("log_prob", "log_ratio"):
            for zero in (0, 0.0, -0.0):
                assert torch.equal(power(x, kind, alpha=zero), x)
        assert torch.equal(identity(x, "log_prob"), x)


@pytest.mark.parametrize("alpha", [-1.0, -0.25, 0.25, 1.0, 2.0])
def test_conventions(alpha: float) -> None:
    s = torch.linspace(-3, 3, 13, dtype=torch.float64)
    paper = torch.tensor([(1 - math.exp(x) ** -alpha) / alpha for x in s.tolist()], dtype=torch.float64)
    ratio = torch.tensor([(math.exp(x) ** alpha - 1) / alpha for x in s.tolist()], dtype=torch.float64)
    for kind, auto in (("log_prob", paper), ("log_ratio", ratio)):
        assert torch.allclose(power(s, kind, alpha=alpha, convention="paper"), paper, rtol=1e-13, atol=1e-15)
        assert torch.allclose(power(s, kind, alpha=alpha, convention="ratio"), ratio, rtol=1e-13, atol=1e-15)
        assert torch.allclose(power(s, kind, alpha=alpha), auto, rtol=1e-13, atol=1e-15)


def test_named_limits_of_the_paper() -> None:
    p = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    assert torch.allclose(power(p.log(), "log_prob", alpha=1.0), 1 - 1 / p, rtol=1e-13)  # inverse-linear
    assert torch.allclose(power(p.log(), "log_prob", alpha=-1.0), p - 1, rtol=1e-13)  # linear


def test_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose auto, paper or ratio"):
        tiny.objective("objective=alphapo", "objective.shape.convention=papre")

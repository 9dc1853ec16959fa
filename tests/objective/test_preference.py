"""Objectives as score x shape x link: gradients, identities and ranges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.build import build
from alphapo_cli.objective.objective import Objective
from tests import tiny

SCORES = ("mean", "sum", "ratio_sum", "ratio_mean")
# name -> (configuration, alpha, sign of the exponent; None: by the score's kind)
SHAPES: dict[str, tuple[dict[str, object], float, int | None]] = {
    "identity": ({"name": "identity"}, 0.0, 1),
    "power": ({"name": "power", "alpha": 0.3}, 0.3, None),
    "power, negative": ({"name": "power", "alpha": -0.7}, -0.7, None),
    "power, paper": ({"name": "power", "alpha": 0.2, "convention": "paper"}, 0.2, -1),
    "power, ratio": ({"name": "power", "alpha": 0.2, "convention": "ratio"}, 0.2, 1),
}
LINKS = ("logistic", "hinge", "squared", "none")
NUMBERS = [(0.0, 0.0, 0.0), (0.4, 0.0, 0.0), (0.0, 0.15, 0.0), (-0.3, 0.2, 0.7)]  # gamma, label smoothing, nll
BETA = 0.8
COMBINATIONS = [
    pytest.param(*c, id=f"{c[0]}-{c[1]}-{c[2]}-{c[3]}")
    for c in itertools.product(SCORES, SHAPES, LINKS, NUMBERS)
    if c[2] != "none" or c[3][2]  # without NLL nothing is left
]


def make(score: str, shape: str, link: str, numbers: tuple[float, float, float]) -> Objective:
    gamma, smoothing, nll = numbers
    return build(
        ObjectiveConfig(
            "any", {"name": score}, dict(SHAPES[shape][0]), {"name": link}, BETA, gamma, None, smoothing, nll
        )
    )


def sample(pairs: int, seed: int, dtype: torch.dtype = torch.float64) -> AnswerLogProbs:
    """Lengths of 1 to 9 tokens, 0.1 to 2.5 nats a token, reference within a few nats; multiples of 1/64."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (2, pairs), generator=generator).double()
    sums = -(lengths * (0.1 + 2.4 * torch.rand(2, pairs, generator=generator, dtype=torch.float64)) * 64).round() / 64
    reference = sums + (torch.randn(2, pairs, generator=generator, dtype=torch.float64) * 128).round() / 64
    return AnswerLogProbs(sums.to(dtype), lengths.to(dtype), reference.to(dtype))


# ------------------------------------------------------------------------------- values and gradients in plain floats


def link_value_and_slope(link: str, m: float, beta: float) -> tuple[float, float]:
    if link == "logistic":
        small = math.exp(-abs(m))
        return max(-m, 0.0) + math.log1p(small), -(1.0 if m < 0 else small) / (1 + small)
    if link == "hinge":
        return max(0.0, 1 - m), -1.0 if m < 1 else 0.0
    if link == "squared":
        return (m / beta - 1 / (2 * beta)) ** 2, 2 * (m / beta - 1 / (2 * beta)) / beta
    return 0.0, 0.0


def by_hand(
    score: str, shape: str, link: str, numbers: tuple[float, float, float],
    sums: tuple[float, float], lengths: tuple[float, float], reference: tuple[float, float],
) -> tuple[float, float, float]:  # fmt: skip
    """(loss, d loss / d L_w, d loss / d L_l) of one pair."""
    gamma, smoothing, nll = numbers
    _, alpha, sign = SHAPES[shape]
    if sign is None:
        sign = 1 if score.startswith("ratio") else -1
    k = sign * alpha
    rewards, slopes = [], []
    for side in range(2):
        per = 1 / lengths[side] if "mean" in score else 1.0
        s = (sums[side] - (reference[side] if score.startswith("ratio") else 0.0)) * per
        rewards.append(BETA * ((math.exp(k * s) - 1) / k if k else s))
        slopes.append(BETA * (math.exp(k * s) if k else 1.0) * per)
    m = rewards[0] - rewards[1] - gamma
    right, right_slope = link_value_and_slope(link, m, BETA)
    wrong, wrong_slope = link_value_and_slope(link, -m, BETA)
    loss = (1 - smoothing) * right + smoothing * wrong - nll * sums[0] / lengths[0]
    slope = (1 - smoothing) * right_slope - smoothing * wrong_slope
    return loss, slope * slopes[0] - nll / lengths[0], -slope * slopes[1]


@pytest.mark.parametrize(("score", "shape", "link", "numbers"), COMBINATIONS)
def test_every_combination_against_formulas_and_finite_differences(
    score: str, shape: str, link: str, numbers: tuple[float, float, float]
) -> None:
    objective = make(score, shape, link, numbers)
    answers = sample(24, seed=len(shape) + 7 * len(link))
    assert answers.reference is not None

    def losses(sums: Tensor) -> Tensor:
        return objective(AnswerLogProbs(sums, answers.lengths, answers.reference)).loss

    leaf = answers.sums.clone().requires_grad_(True)
    loss = losses(leaf)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)

    expected = torch.tensor(
        [
            by_hand(score, shape, link, numbers, *((x[0, i].item(), x[1, i].item()) for x in
                    (answers.sums, answers.lengths, answers.reference)))
            for i in range(24)
        ], dtype=torch.float64,
    )  # fmt: skip
    assert torch.allclose(loss, expected[:, 0], rtol=1e-11, atol=1e-12)
    assert torch.allclose(gradient, expected[:, 1:].T, rtol=1e-10, atol=1e-12)

    h = 2.0**-16
    for side in range(2):
        step = torch.zeros_like(leaf)
        step[side] = h
        there, back = losses(answers.sums + step), losses(answers.sums - step)
        difference = (there - back).detach() / (2 * h)
        # third derivatives over h^2/6, and round-off of the losses over h; a kink of the hinge has no derivative
        smooth = ~at_a_kink(objective, answers, step) if link == "hinge" else torch.ones(24, dtype=torch.bool)
        scale = gradient[side].abs() + loss.detach().abs() * 1e-3 + 1e-3
        assert ((difference - gradient[side]).abs() <= 1e-7 * scale + 1e-6 * gradient[side].abs())[smooth].all()
        assert smooth.sum() >= 20


def at_a_kink(objective: Objective, answers: AnswerLogProbs, step: Tensor) -> Tensor:
    """[B]: whether the margin crosses +1 or -1 within the finite difference."""
    ends = []
    for sign in (1, -1):
        moved = AnswerLogProbs(answers.sums + sign * step, answers.lengths, answers.reference)
        margins = objective(moved).margins
        assert margins is not None
        ends.append(margins - objective.gamma)
    return ((ends[0].abs() - 1) * (ends[1].abs() - 1) <= 0) | ((ends[0].abs() - 1).abs() < 1e-9)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("link", LINKS[:3])
def test_score_gradients_are_the_preference_terms_pull(score: str, link: str) -> None:
    numbers = (0.1, 0.05, 0.9)  # the NLL term is no part of it
    objective = make(score, "power", link, numbers)
    answers = sample(16, seed=3)
    scores = objective(answers).scores
    pull = objective.score_gradients(scores)
    assert answers.reference is not None
    for i in range(16):
        sums, lengths, reference = (
            (x[0, i].item(), x[1, i].item()) for x in (answers.sums, answers.lengths, answers.reference)
        )
        _, d_w, d_l = by_hand(score, "power", link, (0.1, 0.05, 0.0), sums, lengths, reference)
        per = lengths if "mean" in score else (1.0, 1.0)
        assert pull[:, i].tolist() == pytest.approx([d_w * per[0], d_l * per[1]], rel=1e-10, abs=1e-13)


def test_score_gradients_do_not_touch_the_graph_and_work_without_gradients() -> None:
    objective = tiny.objective("objective=alphapo")
    scores = torch.full((2, 3), -1.0, requires_grad=True)
    with torch.no_grad():
        pull = objective.score_gradients(scores)
    assert not pull.requires_grad
    assert scores.grad is None


# ------------------------------------------------------------------------------------------------------- identities

DPO_LIKE = ("objective=alphapo_ratio", "objective.shape.alpha=0")
SIMPO_LIKE = ("objective=alphapo", "objective.shape.alpha=0")
LIMITS = [(SIMPO_LIKE, ("objective=simpo",)), (DPO_LIKE, ("objective=dpo",))]


def loss_and_gradient(objective: Objective, answers: AnswerLogProbs) -> tuple[Tensor, Tensor]:
    leaf = answers.sums.clone().requires_grad_(True)
    loss = objective(AnswerLogProbs(leaf, answers.lengths, answers.reference)).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize(("shaped", "plain"), LIMITS, ids=["SimPO", "DPO"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", ["0", "0.0", "-0.0"])
def test_alpha_zero_is_the_plain_method_bitwise(
    shaped: tuple[str, ...], plain: tuple[str, ...], dtype: torch.dtype, zero: str
) -> None:
    answers = sample(2000, seed=1, dtype=dtype)
    numbers = ("objective.gamma=0.3", "objective.label_smoothing=0.1", "objective.beta=1.7")
    for more in ((), numbers):
        ours = tiny.objective(shaped[0], f"objective.shape.alpha={zero}", *more)
        theirs = tiny.objective(*plain, *more)
        for a, b in zip(loss_and_gradient(ours, answers), loss_and_gradient(theirs, answers), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(ours(answers).rewards, theirs(answers).rewards)


@pytest.mark.parametrize(("shaped", "plain"), LIMITS, ids=["SimPO", "DPO"])
@pytest.mark.parametrize("alpha", [1e-8, 1e-3, -1e-8, -1e-3])
def test_small_alpha_approaches_it_at_the_rate_of_theory(
    shaped: tuple[str, ...], plain: tuple[str, ...], alpha: float
) -> None:
    answers = sample(2000, seed=2)
    ours, theirs = tiny.objective(shaped[0], f"objective.shape.alpha={alpha}"), tiny.objective(*plain)
    near, limit = ours(answers), theirs(answers)
    s, beta = limit.scores, theirs.beta
    # h(s) = s -+ alpha s^2/2 + rest, |rest| <= alpha^2 |s|^3/6 e^{|alpha s|}; the logistic link's slope is below 1
    growth = (alpha * s).abs().exp()
    first = (abs(alpha) * s**2 / 2 * growth).sum(0)
    assert ((near.loss - limit.loss).abs() <= beta * first + 1e-14 * (1 + limit.loss)).all()
    # and the way there is the derivative's: d loss / d alpha at 0
    sign = -1 if ours.score.score_kind == "log_prob" else 1
    pull = theirs.score_gradients(s)
    predicted = (pull * sign * alpha * s**2 / 2).sum(0)
    spread = beta * (s**2).sum(0) / 2
    second = alpha**2 * (beta * (s.abs() ** 3 / 6 * growth).sum(0) + (spread * growth.amax(0)) ** 2 / 2)
    assert ((near.loss - limit.loss - predicted).abs() <= second + 1e-14 * (1 + limit.loss)).all()


def test_swapping_the_pair_negates_the_margin() -> None:
    answers = sample(200, seed=4)
    assert answers.reference is not None
    swapped = AnswerLogProbs(answers.sums.flip(0), answers.lengths.flip(0), answers.reference.flip(0))
    for name in ("alphapo", "alphapo_ratio", "simpo", "dpo", "ipo", "cpo"):
        objective = tiny.objective(f"objective={name}")
        there, back = objective(answers).margins, objective(swapped).margins
        assert there is not None
        assert back is not None
        assert torch.equal(there, -back)


def test_unlearnable_labels_have_no_pull_at_the_indifferent_point() -> None:
    # label smoothing approaching one half: the loss is minimal where the margin is 0
    objective = tiny.objective("objective=dpo", "objective.label_smoothing=0.499999", "objective.beta=1")
    pull = objective.score_gradients(torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64))
    assert pull.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["alphapo", "simpo"])
def test_gamma_is_beta_times_its_ratio(name: str) -> None:
    one = tiny.objective(f"objective={name}", "objective.beta=4", "objective.gamma=1.2")
    two = tiny.objective(f"objective={name}", "objective.beta=4", "objective.gamma_beta_ratio=0.3")
    assert one.gamma == pytest.approx(two.gamma, rel=1e-15)
    with pytest.raises(ConfigError, match="give one"):
        tiny.objective(f"objective={name}", "objective.gamma=1", "objective.gamma_beta_ratio=0.3")


def test_an_objective_without_any_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.nll=0 .* set objective\.nll above 0"):
        tiny.objective("objective=sft", "objective.nll=0")


def test_a_reference_is_asked_for_where_it_is_needed() -> None:
    bare = AnswerLogProbs(torch.zeros(2, 1), torch.ones(2, 1))
    for name in ("alphapo", "simpo", "cpo"):
        assert not tiny.objective(f"objective={name}").needs_reference
        tiny.objective(f"objective={name}")(bare)
    for name in ("alphapo_ratio", "dpo", "ipo"):
        assert tiny.objective(f"objective={name}").needs_reference
        with pytest.raises(UsageError, match="no reference"):
            tiny.objective(f"objective={name}")(bare)


# ---------------------------------------------------------------------------------------------------------- ranges

POWER_LINKS = [(c, link) for c in ("paper", "ratio") for link in LINKS[:3]]
F32 = 2.0**-23
edges = st.one_of(st.sampled_from([0.0, 1e4]), st.floats(0, 1e4, width=32))


def ranged(convention: str, link: str, alpha: float, beta: float, gamma: float, smoothing: float) -> Objective:
    """A power objective on summed log-probs."""
    shape = {"name": "power", "alpha": alpha, "convention": convention}
    return build(ObjectiveConfig("any", {"name": "sum"}, shape, {"name": link}, beta, gamma, None, smoothing))


def of_scores(objective: Objective, s: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [B] and their gradients [2, B] of scores [2, B]."""
    leaf = s.clone().requires_grad_(True)
    loss = objective.preference_loss(leaf)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize(("convention", "link"), POWER_LINKS)
@settings(max_examples=80)
@given(
    chosen=edges, rejected=edges, signs=st.tuples(st.booleans(), st.booleans()),
    alpha=st.one_of(st.sampled_from([-4.0, 4.0]), st.floats(-4, 4)),
    beta=st.one_of(st.sampled_from([0.01, 100.0]), st.floats(0.01, 100)),
    gamma=st.floats(-10, 10), smoothing=st.sampled_from([0.0, 0.1, 0.4]),
)  # fmt: skip
def test_finite_in_float32_and_the_same_in_float64(
    convention: str, link: str, chosen: float, rejected: float, signs: tuple[bool, bool],
    alpha: float, beta: float, gamma: float, smoothing: float,
) -> None:  # fmt: skip
    objective = ranged(convention, link, alpha, beta, gamma, smoothing)
    # log-probs under the paper's convention, log-ratios of either sign under the other
    sign = [-1.0, -1.0] if convention == "paper" else [1.0 if up else -1.0 for up in signs]
    s = torch.tensor([[sign[0] * chosen], [sign[1] * rejected]])
    loss, gradient = of_scores(objective, s)
    for value in (loss, gradient, (gradient * gradient).sum()):
        assert value.isfinite().all()
    assert (gradient[0] <= 0).all() or smoothing or link == "squared"

    wide_loss, wide_gradient = of_scores(objective, s.double())
    r = objective.rewards(s.double())
    size = r.abs().sum().item() + abs(gamma)
    # Round-off of the margin: e^z errs by |z| <= 30 roundings and a few more operations; the link passes it on.
    margin_error = 40 * F32 * size
    m = (r[0] - r[1] - gamma).abs().item()
    gap = (m + margin_error) / beta + 0.5 / beta
    steepest = 2 * min(gap, 1e5) / beta if link == "squared" else 1.0
    # The squared link's own subtractions, in units of what is subtracted.
    own = 8 * F32 * (min(gap, 1e5) * (2 * gap + 1e5) if link == "squared" else 1 + size)
    assert (loss.double() - wide_loss).abs().item() <= steepest * margin_error + own
    # The slope of the link moves with the margin: at most by 1/4 (logistic) or 2/beta^2 (squared) a unit.
    bend = {"logistic": 0.25, "squared": 2 / beta**2, "hinge": 0.0}[link]
    h = (
        objective.beta
        * torch.autograd.grad(objective.shape_function(x := s.double().requires_grad_(True), "log_prob").sum(), x)[0]
    )
    near_kink = link == "hinge" and abs(m - 1) <= margin_error
    moved = 1.0 if near_kink else min(bend * margin_error, 2 * steepest)
    allowed = h * (moved + 60 * F32 * steepest)
    assert ((gradient.double() - wide_gradient).abs() <= allowed + 1e-30).all()


@pytest.mark.parametrize("alpha", [-4.0, -1.0, -0.25, 0.0, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("link", LINKS[:3])
def test_training_step_at_the_ends_of_the_range_has_a_finite_gradient_norm(link: str, alpha: float) -> None:
    # 64 pairs at the worst corners at once, summed log-probs, beta 100; the norm as an optimizer's clipping takes it
    objective = ranged("paper", link, alpha, 100.0, 10.0, 0.0)
    corners = torch.tensor([[-1e4, 0.0, -1e4, 0.0], [0.0, -1e4, -1e4, 0.0]]).repeat(1, 16)
    loss, gradient = of_scores(objective, corners)
    assert loss.mean().isfinite()
    assert torch.nn.utils.get_total_norm([gradient / 64]).isfinite()
    assert (gradient * gradient / 64**2).sum().isfinite()


# ------------------------------------------------------------------------------------------------------------- bf16


@pytest.mark.parametrize("overrides", [["objective=alphapo"], ["objective=alphapo", "objective.shape.alpha=-1"],
                                       ["objective=alphapo", "objective.shape.alpha=1e-4"], ["objective=dpo"],
                                       ["objective=alphapo_ratio"]], ids=" ".join)  # fmt: skip
def test_bf16_log_probs_give_the_margin_of_float32(overrides: list[str]) -> None:
    objective = tiny.objective(*overrides)
    answers = sample(4000, seed=6)
    assert answers.reference is not None
    # rejected answers that nearly tie: a neighbour or two away in bf16
    tied = answers.sums.bfloat16()
    tied[1] = (tied[0].float() * (1 + torch.randint(-2, 3, (4000,)) * 2.0**-8)).bfloat16()
    lengths = answers.lengths[:1].expand(2, -1)
    reference = answers.reference[:1].expand(2, -1).bfloat16()
    narrow = objective(AnswerLogProbs(tied, lengths.bfloat16(), reference))
    wide = objective(AnswerLogProbs(tied.float(), lengths.float(), reference.float()))
    assert narrow.margins is not None
    assert wide.margins is not None
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.margins, wide.margins)
    assert torch.equal(narrow.margins.sign(), (tied[0].double() - tied[1].double()).sign().float())

"""Objectives that read single tokens: weights by hand, and the limits in which they are other methods."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.layout.batch import CompletionTokens
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs, TokenStatistics
from tests import tiny
from tests.conftest import Ran

# Ids of each answer: two pairs, chosen answers first.
IDS = [[5, 6, 7, 8, 9], [4, 4], [5, 7, 8], [4, 3, 3, 4]]
ANSWER = [0] * 5 + [1] * 2 + [2] * 3 + [3] * 4


def tokens(seed: int, ids: list[list[int]] = IDS, answer: list[int] = ANSWER) -> AnswerLogProbs:
    generator = torch.Generator().manual_seed(seed)
    count = len(answer)
    logps = -2 * torch.rand(count, generator=generator, dtype=torch.float64)
    sum_p2 = 0.1 + 0.8 * torch.rand(count, generator=generator, dtype=torch.float64)
    facts = TokenStatistics(torch.zeros(count), sum_p2)
    flat = torch.tensor([i for part in ids for i in part])
    given = TokenLogProbs(
        logps.requires_grad_(True), CompletionTokens(flat, torch.tensor(answer), 2, 2), facts
    ).answers()
    return replace(given, reference=torch.zeros(2, 2, dtype=torch.float64), index=torch.tensor([7, 3]))


def weights(given: AnswerLogProbs, *overrides: str) -> list[float]:
    """Of every token: what the score's gradient says."""
    objective = tiny.objective(*overrides)
    assert given.per_token is not None
    (found,) = torch.autograd.grad(objective.scores(given).sum(), given.per_token.logps, retain_graph=True)
    return [float(x) for x in found]


def logps(given: AnswerLogProbs) -> Tensor:
    assert given.per_token is not None
    return given.per_token.logps.detach()


def test_ld_dpo_counts_the_tail_in_part() -> None:
    given = tokens(1)
    # shorter answers: 3 tokens in the first pair, 2 in the second
    expected = [1, 1, 1, 0.5, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.5]
    assert weights(given, "objective=ld_dpo") == expected
    loss = tiny.objective("objective=ld_dpo")(given).loss
    p = logps(given)
    d = p[:3].sum() + 0.5 * p[3:5].sum() - p[7:10].sum()
    assert loss[0].item() == pytest.approx(math.log1p(math.exp(-0.1 * d)), rel=1e-12)


def test_bmc_counts_unlikely_tokens_of_one_answer_only_more() -> None:
    given = tokens(2)
    p = logps(given).exp()
    boost = [1 + min(1 / float(x), 2.0) for x in p]
    # first pair: 6 and 9 are in the chosen answer only; second: 4 | 4 against 4 | 3 3 4
    differs = [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    expected = [b if d else 1.0 for b, d in zip(boost, differs, strict=True)]
    assert weights(given, "objective=bmc") == pytest.approx(expected, rel=1e-12)
    counted = [w * float(x) for w, x in zip(expected, logps(given), strict=True)]
    d = [sum(counted[:5]) - sum(counted[7:10]), sum(counted[5:7]) - sum(counted[10:])]
    loss = tiny.objective("objective=bmc")(given).loss.tolist()  # beta 0.01, as its authors train chat models
    assert loss == pytest.approx([math.log1p(math.exp(-0.01 * x)) for x in d], rel=1e-12)


def test_sampo_takes_as_many_tokens_and_draws_by_pair_and_seeds_alone() -> None:
    given = tokens(3)
    drawn = weights(given, "objective=sampo")
    assert drawn == weights(tokens(4), "objective=sampo")  # policy and reference: the same places
    assert sorted(drawn[:5]) == [0, 0, 1, 1, 1]
    assert drawn[5:10] == [1] * 5
    assert sorted(drawn[10:]) == [0, 0, 1, 1]
    for seeds in (
        [tiny.objective("objective=sampo", f"objective.token.seed={s}") for s in range(8)],
        [tiny.objective("objective=sampo", seed=s) for s in range(8)],  # the run's
    ):
        assert len({tuple(o.parts["token"](given, given.per_token).tolist()) for o in seeds}) > 3
    # alone in a batch, the pair keeps its draw
    alone = TokenLogProbs(
        logps(given)[[0, 1, 2, 3, 4, 7, 8, 9]], CompletionTokens(torch.zeros(8), torch.tensor([0] * 5 + [1] * 3), 1, 2)
    )
    single = replace(alone.answers(), index=torch.tensor([7]))
    assert tiny.objective("objective=sampo").parts["token"](single, alone).tolist() == drawn[:5] + drawn[7:10]


def test_sampo_draws_every_token_equally_often() -> None:
    """Of five tokens any three: each in three fifths of the draws, each two together in three tenths."""
    objective = tiny.objective("objective=sampo")
    pairs = 2000
    answer = torch.cat([torch.arange(pairs).repeat_interleave(5), pairs + torch.arange(pairs).repeat_interleave(3)])
    scored = TokenLogProbs(torch.zeros(8 * pairs), CompletionTokens(torch.zeros(8 * pairs), answer, pairs, 2))
    drawn = objective.parts["token"](scored.answers(), scored)[: 5 * pairs].view(pairs, 5).double()
    assert (drawn.sum(1) == 3).all()
    together = drawn.T @ drawn / pairs
    expected = torch.full((5, 5), 0.3, dtype=torch.float64).fill_diagonal_(0.6)
    assert (together - expected).abs().max() < 4 * math.sqrt(0.25 / pairs)  # four standard errors of a share


def test_tgdpo_counts_what_the_guide_prefers_more_where_chosen_and_less_where_rejected() -> None:
    given = tokens(9)
    assert given.per_token is not None
    q = torch.linspace(-2, 3, len(ANSWER), dtype=torch.float64)
    guided = replace(given, per_token=replace(given.per_token, tokens=replace(given.per_token.tokens, guide=q)))
    expected = [1 + 0.05 * float(x) if a < 2 else 1 - 0.05 * float(x) for x, a in zip(q, ANSWER, strict=True)]
    assert weights(guided, "objective=tgdpo") == pytest.approx(expected, rel=1e-12)
    p = logps(given)
    d = [sum(expected[t] * float(p[t]) for t, a in enumerate(ANSWER) if a == answer) for answer in range(4)]
    loss = tiny.objective("objective=tgdpo")(guided).loss
    for pair in range(2):
        assert loss[pair].item() == pytest.approx(math.log1p(math.exp(-0.1 * (d[pair] - d[pair + 2]))), rel=1e-12)
    plain = tiny.objective("objective=tgdpo", "objective.token.strength=0")(guided).loss
    assert torch.allclose(plain, tiny.objective("objective=dpo")(given).loss, rtol=1e-13)
    with pytest.raises(UsageError, match=r"name one in model\.guide"):
        tiny.objective("objective=tgdpo")(given)


@pytest.mark.parametrize("name", ["sampo", "ld_dpo"])
def test_answers_of_one_length_are_dpo(name: str) -> None:
    ids = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 9]]
    given = tokens(5, ids, [0] * 3 + [1] * 2 + [2] * 3 + [3] * 2)
    for a, b in zip(*(tiny.objective(f"objective={n}")(given).loss for n in (name, "dpo")), strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-14)


def test_every_token_once_is_dpo() -> None:
    given = tokens(6)
    dpo = tiny.objective("objective=dpo")(given).loss
    assert torch.allclose(tiny.objective("objective=ld_dpo", "objective.token.alpha=1")(given).loss, dpo, rtol=1e-13)
    assert torch.allclose(
        tiny.objective("objective=bmc", "objective.token.delta=0", "objective.beta=0.1")(given).loss, dpo, rtol=1e-13
    )


@pytest.mark.parametrize("clamp", [True, False])
def test_wpo_weighs_by_how_likely_the_policy_writes_the_pair(clamp: bool) -> None:
    given = tokens(7)
    objective = tiny.objective("objective=wpo", f"objective.weight.clamp={str(clamp).lower()}")
    assert given.per_token is not None
    assert given.per_token.statistics is not None
    p, p2 = logps(given), given.per_token.statistics.sum_p2
    parts = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13]]
    w = [math.exp(sum(float(p[t] - p2[t].log()) for t in part) / len(part)) for part in parts]
    loss = objective(given).loss
    plain = tiny.objective("objective=dpo", "objective.beta=0.01")(given).loss
    for pair in range(2):
        product = w[pair] * w[pair + 2]
        expected = (min(product, 1.0) if clamp else product) * plain[pair].item()
        assert loss[pair].item() == pytest.approx(expected, rel=1e-12)
    # no gradient through the weight
    (with_weight,) = torch.autograd.grad(loss[0], given.per_token.logps, retain_graph=True)
    (without,) = torch.autograd.grad(plain[0], given.per_token.logps, retain_graph=True)
    assert torch.allclose(with_weight, without * (loss[0] / plain[0]), rtol=1e-10)


def test_token_weights_go_with_any_score_and_shape() -> None:
    """AlphaPO on LD-DPO's tokens: both sum and length are weighted."""
    given = tokens(8)
    objective = tiny.objective("objective=alphapo", "objective/token=prefix", "objective.token.alpha=0.25")
    p = logps(given)
    mean = (p[:3].sum() + 0.25 * p[3:5].sum()) / 3.5
    assert objective.scores(given)[0, 0].item() == pytest.approx(float(mean), rel=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ld_dpo", "sampo", "bmc", "wpo"])
def test_training_on_tokens(name: str, alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    ran = alphapo("train", *tiny, f"objective={name}", "trainer.gradient_accumulation_steps=2", "--json", "-")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out.splitlines()[-1])["metrics"]
    assert found["gradient_weight/chosen"] < 0 < found["gradient_weight/rejected"]


@pytest.mark.parametrize("name", ["ld_dpo", "wpo"])
def test_sums_alone_are_refused(name: str, alphapo: Callable[..., Ran], tmp_path: Any) -> None:
    rng = Random(0)
    row = {"chosen_logp": -rng.random(), "rejected_logp": -2.0, "chosen_tokens": 3, "rejected_tokens": 4,
           "ref_chosen_logp": -1.0, "ref_rejected_logp": -2.0}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    ran = alphapo("loss", "rows.jsonl", f"objective={name}")
    assert ran.code == 2
    assert "only sums" in ran.fault


def test_what_compares_with_the_reference_reads_the_same_tokens_as_it() -> None:
    """Only the first two tokens of each answer count; by them the chosen answer leads the reference by 0.5 a token.

    By all tokens of the policy against the counted ones of the reference it would lag behind.
    """
    four_and_two = TokenLogProbs(
        torch.full((6,), -1.0, dtype=torch.float64),
        CompletionTokens(torch.arange(6), torch.tensor([0, 0, 0, 0, 1, 1]), 1, 2),
    )
    reference = torch.tensor([[-3.0], [-2.0]], dtype=torch.float64)  # 2 x -1.5 and 2 x -1
    given = replace(four_and_two.answers(), reference=reference, columns={"score_chosen": torch.tensor([4.0]),
                                                                          "score_rejected": torch.tensor([1.0])})  # fmt: skip
    cut = ("objective/token=prefix", "objective.token.alpha=0")
    margin = tiny.objective("objective=alpha_dpo", *cut, "objective.gamma_beta_ratio=0")
    by_hand = margin.beta * margin.parts["margin"].settings["alpha"] * 0.5
    loss = margin(given).loss.item()
    assert loss == pytest.approx(math.log1p(math.exp(by_hand)), rel=1e-12)  # equal mean log-probs, less the margin
    omni = ("objective=omni_dpo", *cut)
    with_nll, without = (tiny.objective(*omni, f"objective.regulariser.weight={w}")(given).loss for w in (1, 0))
    assert with_nll.item() == without.item()  # L_w = -2 is above R_w = -3: no NLL is due
    below = replace(given, reference=torch.tensor([[-1.5], [-2.0]], dtype=torch.float64))
    with_nll, without = (tiny.objective(*omni, f"objective.regulariser.weight={w}")(below).loss for w in (1, 0))
    assert with_nll.item() - without.item() == pytest.approx(1.0, rel=1e-12)  # of all four tokens, -1 each


def test_sums_over_whole_answers_do_not_go_with_token_weights() -> None:
    with pytest.raises(ConfigError, match=r"objective/token=prefix: score 'ratio_mixed' reads sums over whole answers"):
        tiny.objective("objective=mrpo", "objective/token=prefix")

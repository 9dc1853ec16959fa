"""Log-probs of completion tokens against the model's own full logits, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPair
from alphapo_cli.modeling.layout import padded
from alphapo_cli.modeling.layout.batch import CompletionTokens
from alphapo_cli.modeling.lm_head import Head, observe, token_log_probs
from alphapo_cli.modeling.logprobs import TokenLogProbs, log_softmax_at, share_above
from alphapo_cli.modeling.policy import PolicyModel, frozen_head, head_of
from tests import tiny


def by_plain_forward(lm: torch.nn.Module, pair: TokenPair) -> list[Tensor]:
    """log p of every token of both completions, one sequence at a time, from the logits the model itself returns."""
    out = []
    for answer in (pair.chosen, pair.rejected):
        ids = torch.tensor([*pair.prompt.tolist(), *answer.tolist()])
        with torch.no_grad():
            table = lm(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].double().log_softmax(-1)
        first = len(pair.prompt)
        out.append(torch.stack([table[t - 1, ids[t]] for t in range(first, len(ids))]))
    return out


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_completion_log_probs_are_the_models_own(family: str) -> None:
    lm = tiny.model(family).double()
    lm.set_experts_implementation("eager")  # torch's grouped products know no float64
    pairs = list(tiny.token_pairs(5, seed=2))
    batch = padded.collate(pairs, pad_id=tiny.PAD)
    with torch.no_grad():
        tokens = PolicyModel(lm).score(batch)
    answers = tokens.answers()
    for i, pair in enumerate(pairs):
        for side, expected in enumerate(by_plain_forward(lm, pair)):
            mine = tokens.logps[(tokens.tokens.pair == i) & (tokens.tokens.side == side)]
            assert torch.allclose(mine, expected, rtol=0, atol=1e-12)
            assert answers.lengths[side, i] == len(expected)
            assert answers.sums[side, i].item() == pytest.approx(expected.sum().item(), abs=1e-10)


def test_float32_log_probs_are_within_its_round_off() -> None:
    lm, pairs = tiny.model(), list(tiny.token_pairs(8, seed=3))
    with torch.no_grad():
        ours = PolicyModel(lm).score(padded.collate(pairs, pad_id=tiny.PAD)).answers()
        truth = PolicyModel(lm.double()).score(padded.collate(pairs, pad_id=tiny.PAD)).answers()
    assert ours.per_token is not None
    assert ours.per_token.logps.dtype == torch.float32
    # two layers of 32-term sums: some tens of roundings of numbers of this size
    assert torch.allclose(ours.sums, truth.sums, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2, soft-capped"])
def test_the_bound_on_rounding_holds_and_is_near(family: str, bf16: bool) -> None:
    """Of each answer's sum, in the dtype that computes, against float64: never over the bound, and seldom far below."""
    if bf16:
        tiny.needs_bf16()
    lm, pairs = tiny.model(family, spread=0.1), list(tiny.token_pairs(64, seed=3))
    with torch.no_grad():
        policy = PolicyModel(lm, bf16=bf16)
        ours = replace(
            policy.score(padded.collate(pairs, pad_id=tiny.PAD)).answers(), token_rounding=policy.token_rounding
        )
        with tiny.Wide():
            truth = PolicyModel(lm.double()).score(padded.collate(pairs, pad_id=tiny.PAD)).answers()
    errors = (ours.sums - truth.sums).abs() / ours.rounding()
    assert errors.max() <= 1
    assert errors.square().mean().sqrt() >= 1 / 3 / 20  # a standard error is a third of the bound


def test_above_halves_what_rounding_decides() -> None:
    difference, rounding = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, math.nan]), 1.0
    assert share_above(difference, rounding).tolist() == [1, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert share_above(difference.numpy(), rounding).tolist() == [1, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert share_above(difference[:4], 0.0).tolist() == [1, 1, 1, 0.5]


def test_bf16_model_outputs_are_read_as_what_they_are() -> None:
    logits = (torch.randn(200, 97, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    targets = torch.randint(0, 97, (200,), generator=torch.Generator().manual_seed(1))
    ours = log_softmax_at(logits, targets)
    truth = logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), truth, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=alphapo",),
        pytest.param(("objective=simpo",), marks=pytest.mark.slow),
        pytest.param(("objective=cpo",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_bf16_model_gives_the_margin_signs_of_float32_on_its_outputs(overrides: tuple[str, ...]) -> None:
    tiny.needs_bf16()
    lm = tiny.model().bfloat16()
    pairs = list(tiny.token_pairs(48, seed=4))
    batch = padded.collate(pairs, pad_id=tiny.PAD)
    policy, objective = PolicyModel(lm), tiny.objective(*overrides)
    with torch.no_grad():
        hidden = policy.hidden(batch)
        logits = head_of(lm)(hidden)  # the model's outputs
        assert logits.dtype == torch.bfloat16
        ours = objective(policy.score(batch).answers())
        exact = logits.double().log_softmax(-1).gather(-1, batch.tokens.ids.unsqueeze(-1)).squeeze(-1)
    answers = TokenLogProbs(exact, batch.tokens).answers()
    truth = objective(answers)
    assert ours.margins is not None
    assert truth.margins is not None
    assert torch.equal(ours.margins.sign(), truth.margins.sign().float())
    # one bf16 rounding of the log-probs would already have moved them further than this
    assert torch.allclose(ours.margins.double(), truth.margins, rtol=1e-4, atol=1e-4)


def test_chunks_do_not_show() -> None:
    lm = tiny.model().double()
    hidden = torch.randn(37, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 97, (37,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = token_log_probs(hidden, targets, head_of(lm))
        for rows in (1, 5, 36, 37, 100):
            pieces = token_log_probs(hidden, targets, head_of(lm), chunk_bytes=rows * 97 * 4)
            assert torch.allclose(pieces, whole, atol=1e-14)
        start = (hidden.flip(0)[:20], head_of(lm))
        ours = observe(hidden, targets, head_of(lm), described=20, start=start)
        for rows in (1, 7, 19, 20, 21, 36):
            parts = observe(hidden, targets, head_of(lm), described=20, start=start, chunk_bytes=rows * 97 * 4)
            assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(ours, parts, strict=True))


@pytest.mark.parametrize("described", [0, 1, 13, 20])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_observed_is_of_the_whole_distribution(described: int, bias: bool) -> None:
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(32, 97, bias=bias).double() for _ in range(2)]
    now, start = (torch.randn(20, 32, dtype=torch.float64, generator=g) for _ in range(2))
    targets = torch.randint(0, 97, (20,), generator=g)
    heads = [Head(layer, 1.5, 4.0) for layer in layers]
    logps, entropy, kl = observe(
        now, targets, heads[0], described=described, start=(start[:described], heads[1]), chunk_bytes=7 * 97 * 4
    )
    assert len(entropy) == len(kl) == described
    for i in range(20):
        with torch.no_grad():
            p, q = (
                (4 * torch.tanh(1.5 * layer(x[i]) / 4)).softmax(-1).tolist()
                for layer, x in zip(layers, (now, start), strict=True)
            )
        assert logps[i].item() == pytest.approx(math.log(p[int(targets[i])]), rel=1e-12)
        if i < described:
            assert entropy[i].item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-12)
            divergence = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
            assert kl[i].item() == pytest.approx(divergence, rel=1e-10)
            assert kl[i] > 0


def test_the_start_has_no_kl() -> None:
    _, entropy, kl = observe(torch.zeros(3, 32), torch.tensor([0, 1, 2]), head_of(tiny.model()), described=2)
    assert kl.tolist() == [0, 0]
    assert entropy.tolist() == pytest.approx([math.log(97)] * 2, rel=1e-6)  # equal logits: the uniform distribution


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_observed_is_what_training_sees(bf16: bool) -> None:
    """To the last bit: a log-ratio to a reference that is the policy itself is 0."""
    g = torch.Generator().manual_seed(0)
    hidden, targets = torch.randn(50, 32, generator=g), torch.randint(0, 97, (50,), generator=g)
    head = head_of(tiny.model())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logps = observe(hidden, targets, head, described=20, chunk_bytes=7 * 97 * 4)[0]
        assert torch.equal(logps, token_log_probs(hidden, targets, head, chunk_bytes=7 * 97 * 4))


def test_frozen_head_stays_while_the_model_moves() -> None:
    lm = tiny.model("gemma2, soft-capped")
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    kept, before = frozen_head(lm)(), head_of(lm)(hidden).detach()
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(1.0)
    assert torch.equal(kept(hidden), before)
    assert not torch.allclose(head_of(lm)(hidden), before)


def test_sums_belong_to_the_right_answers() -> None:
    answer = torch.tensor([3, 0, 0, 2, 3, 1, 3])  # side * 2 + pair, in any order
    tokens = TokenLogProbs(-torch.arange(1.0, 8.0), CompletionTokens(torch.zeros(7, dtype=torch.int64), answer, 2, 2))
    answers = tokens.answers()
    assert answers.sums.tolist() == [[-5.0, -6.0], [-4.0, -13.0]]
    assert answers.lengths.tolist() == [[2.0, 1.0], [1.0, 3.0]]
    assert tokens.tokens.pair.tolist() == [1, 0, 0, 0, 1, 1, 1]
    assert tokens.tokens.side.tolist() == [1, 0, 0, 1, 1, 0, 1]


def test_the_log_ratio_of_long_answers_keeps_every_digit_of_its_tokens() -> None:
    # Two sums near -10,000 are each off by 5e-4 in float32; their difference here is 0.01.
    values = -torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 5
    moved = values.clone()
    moved[::2] += 5e-6
    zeros = torch.zeros(4000, dtype=torch.int64)
    ours, before = (TokenLogProbs(x, CompletionTokens(zeros, zeros, 1, 1)).answers() for x in (moved, values))
    ratio = replace(ours, reference=before.sums).log_ratio().item()
    truth = math.fsum(a - b for a, b in zip(moved.tolist(), values.tolist(), strict=True))
    assert ratio == pytest.approx(truth, rel=1e-8)

"""Token weights: how much each completion token counts in a score, before the score adds them up.

[N] weights from an answer's tokens, without gradient. A score's sum L becomes sum_t w_t log p_t and its length n
becomes sum_t w_t; the reference's sums are made by the same rule from the reference's own tokens. The NLL and what is
logged count every token once.
"""

from __future__ import annotations

import difflib
import math

import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs
from alphapo_cli.objective.part import register


@register("token", pointwise=True)
def all_(answers: AnswerLogProbs, scored: TokenLogProbs) -> Tensor | None:
    """Every token counts once."""
    return None


def _shorter(answers: AnswerLogProbs, scored: TokenLogProbs) -> Tensor:
    """[N] length of the shorter answer of each token's pair."""
    return answers.lengths.amin(0)[scored.tokens.pair]


@register("token", limits={"alpha": {"ge": 0}})
def prefix(answers: AnswerLogProbs, scored: TokenLogProbs, *, alpha: float = 0.5) -> Tensor:
    """1 for the first m tokens, m the shorter answer's length, alpha for what follows: LD-DPO (2409.06411).

    alpha = 1 is `all`.
    """
    inside = scored.tokens.position < _shorter(answers, scored)
    return torch.where(inside, 1.0, alpha).to(scored.logps)


@register("token", limits={"seed": {"ge": 0, "lt": 2**32}})  # torch takes 64 bits, of which each pair needs some
def sampled(answers: AnswerLogProbs, scored: TokenLogProbs, *, seed: int = 0) -> Tensor:
    """1 for m tokens of each answer drawn at random, m the shorter answer's length, 0 for the rest: SamPO (2406.10957).

    One draw for policy and reference, of the pair's place in the data and `seed` alone: the authors draw anew for
    each, and at every step.
    """
    tokens = scored.tokens
    keep = answers.lengths.amin(0)
    index = torch.arange(tokens.num_pairs) if answers.index is None else answers.index.cpu()
    position = tokens.position
    weights = torch.zeros_like(scored.logps)
    for answer in range(tokens.num_pairs * tokens.num_sides):
        side, pair = divmod(answer, tokens.num_pairs)
        count, size = int(answers.lengths[side, pair]), int(keep[pair])
        mine = tokens.answer == answer
        if size == count:
            weights[mine] = 1.0
            continue
        generator = torch.Generator().manual_seed((seed * 1_000_003 + int(index[pair])) * 2 + side)
        drawn = torch.zeros(count, dtype=weights.dtype)
        drawn[torch.randperm(count, generator=generator)[:size]] = 1.0
        weights[mine] = drawn.to(weights.device)[position[mine]]
    return weights


@register("token")
def differing(answers: AnswerLogProbs, scored: TokenLogProbs, *, delta: float = 2.0) -> Tensor:
    """1 + min(1/p, delta) for tokens that only one answer of the pair has, 1 for the others: BMC (2408.07471).

    Which tokens differ is found by difflib's matching blocks of the two answers, rejected first. The authors' code runs
    it over prompt and answer and leaves stop words out.
    """
    tokens = scored.tokens
    if not delta >= 0:
        raise ConfigError(f"objective.token.delta={delta}: must be at least 0")
    weights = torch.ones_like(scored.logps)
    if tokens.num_sides < 2:
        return weights
    ids = [tokens.ids[tokens.answer == a].tolist() for a in range(2 * tokens.num_pairs)]
    changed = torch.ones(len(weights), dtype=torch.bool)
    start = torch.zeros(2 * tokens.num_pairs, dtype=torch.long)
    start[1:] = torch.tensor([len(x) for x in ids[:-1]]).cumsum(0)
    for pair in range(tokens.num_pairs):
        a, b = pair, pair + tokens.num_pairs
        for block in difflib.SequenceMatcher(None, ids[b], ids[a], autojunk=False).get_matching_blocks():
            changed[start[b] + block.a : start[b] + block.a + block.size] = False
            changed[start[a] + block.b : start[a] + block.b + block.size] = False
    boost = torch.exp(-scored.logps.detach()).clamp(max=delta)
    return torch.where(changed.to(boost.device), 1 + boost, 1.0)


@register("token", limits={"gamma": {"gt": 0, "le": 1}})
def turns(answers: AnswerLogProbs, scored: TokenLogProbs, *, gamma: float = 0.7) -> Tensor:
    """gamma^j (1 - gamma^(T-j))/(1 - gamma^T) for the tokens of turn j of an answer of T turns: DMPO (2406.14868).

    Turns count from 0, those of the assistant alone (`data.trajectories`) that truncation left; gamma = 1 is (T - j)/T.
    One turn is `all`.
    """
    tokens = scored.tokens
    if tokens.turn is None:
        return torch.ones_like(scored.logps)
    turn = tokens.turn.double()
    count = torch.zeros(tokens.num_sides * tokens.num_pairs, dtype=turn.dtype, device=turn.device)
    total = count.scatter_reduce(0, tokens.answer, turn + 1, "amax")[tokens.answer]
    if gamma == 1:
        return ((total - turn) / total).to(scored.logps)
    rate = math.log(gamma)
    share = torch.expm1(rate * (total - turn)) / torch.expm1(rate * total)
    return (torch.exp(rate * turn) * share).to(scored.logps)


@register("token", needs_guide=True)
def guided(answers: AnswerLogProbs, scored: TokenLogProbs, *, strength: float = 0.05) -> Tensor:
    """1 + strength q for chosen and 1 - strength q for rejected tokens, q = log(guide/reference): TGDPO (2506.14574).

    strength is the paper's alpha beta. The guide is an already trained model, `model.guide`; strength = 0 is `all`.
    """
    tokens = scored.tokens
    if tokens.guide is None:
        raise UsageError("this objective weighs tokens by a guide model, and none was given; name one in model.guide")
    sign = torch.where(tokens.side == 0, 1.0, -1.0).to(tokens.guide)
    return (1 + strength * sign * tokens.guide).to(scored.logps)

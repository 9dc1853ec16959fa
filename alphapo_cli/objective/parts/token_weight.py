"""Token weights: how much each completion token counts in a score, before the score sums over tokens.

A part maps an answer's tokens to weights [N], without gradient. A score's sum L becomes sum_t w_t log p_t and its
length n becomes sum_t w_t; the reference's sums are computed by the same rule from the reference's own tokens. The NLL
and the logged metrics count every token once.
"""

from __future__ import annotations

import difflib
import math

import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs
from alphapo_cli.objective import counter_rng
from alphapo_cli.objective.part import register


@register("token", pointwise=True)
def all_(answers: AnswerLogProbs, scored: TokenLogProbs) -> Tensor | None:
    """Every token counts once."""
    return None


def _shorter(answers: AnswerLogProbs, scored: TokenLogProbs) -> Tensor:
    """Length of the shorter answer of each token's pair, [N]."""
    return answers.lengths.amin(0)[scored.tokens.pair]


@register("token", limits={"alpha": {"ge": 0}})
def prefix(answers: AnswerLogProbs, scored: TokenLogProbs, *, alpha: float = 0.5) -> Tensor:
    """LD-DPO (2409.06411): full weight up to the shorter answer's length m; alpha = 1 is `all`.

    Returns:
        1 for the first m tokens of an answer, alpha for those that follow, [N].
    """
    inside = scored.tokens.position < _shorter(answers, scored)
    return torch.ones_like(scored.logps).where(inside, alpha)  # in the dtype of the log-probs


@register("token", limits={"seed": {"ge": 0, "lt": 2**32}}, seeded=True)
def sampled(answers: AnswerLogProbs, scored: TokenLogProbs, *, run_seed: int, seed: int = 0) -> Tensor:
    """SamPO (2406.10957): m random tokens of each answer count, m the shorter answer's length.

    One draw for policy and reference, from the run's seed, `seed` and the pair's index in the data alone: the authors
    draw anew for each, and at every step.

    Returns:
        1 for the tokens drawn and 0 for the rest, [N].
    """
    tokens = scored.tokens
    device = tokens.answer.device
    index = torch.arange(tokens.num_pairs, device=device) if answers.index is None else answers.index.to(device)
    # The last word tells these numbers from those of other draws.
    drawn = counter_rng.uniform((run_seed, seed), index[tokens.pair], tokens.position, tokens.side, 1)
    order = drawn.argsort()
    order = order[tokens.answer[order].argsort(stable=True)]  # answer by answer, in each by the numbers drawn
    counts = tokens.answer.bincount(minlength=tokens.num_sides * tokens.num_pairs)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device) - (counts.cumsum(0) - counts)[tokens.answer[order]]
    return (rank < _shorter(answers, scored)).to(scored.logps)


@register("token")
def differing(answers: AnswerLogProbs, scored: TokenLogProbs, *, delta: float = 2.0) -> Tensor:
    """BMC (2408.07471): tokens that only one answer of the pair has count more.

    Which tokens differ is found by difflib's matching blocks of the two answers, rejected first. The authors' code runs
    it over prompt and answer and leaves stop words out.

    Returns:
        1 + min(1/p, delta) for these tokens, 1 for the others, [N].

    Raises:
        ConfigError: delta is below 0.
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
    """DMPO (2406.14868): weights that fall with the turn j of an answer of T turns.

    Turns count from 0, those of the assistant alone (`data.trajectories`) that truncation left; gamma = 1 is (T - j)/T.
    One turn is `all`.

    Returns:
        gamma^j (1 - gamma^(T-j))/(1 - gamma^T), [N].
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


@register("token", needs_guide=True, signed=True)
def guided(answers: AnswerLogProbs, scored: TokenLogProbs, *, strength: float = 0.05) -> Tensor:
    """TGDPO (2506.14574): weights from q = log(guide/reference) of an already trained model, `model.guide`.

    `strength` is the paper's alpha beta; strength = 0 is `all`. Weights may be 0 or below, so that scores that divide by
    their sum are refused.

    Returns:
        1 + strength q for chosen and 1 - strength q for rejected tokens, [N].

    Raises:
        UsageError: the tokens have no log-ratios of a guide model.
    """
    tokens = scored.tokens
    if tokens.guide is None:
        raise UsageError("this objective weighs tokens by a guide model, and none was given; name one in model.guide")
    sign = torch.where(tokens.side == 0, 1.0, -1.0).to(tokens.guide)
    return (1 + strength * sign * tokens.guide).to(scored.logps)

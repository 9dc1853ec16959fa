"""Scores of single pairs under the model that training starts from, by which pairs may be told that will be displaced.

CHES (centred hidden embedding similarity, 2410.08847 definition 2) is <S_w, S_l> - |S_w|^2, where S is the sum over an
answer's tokens of the last hidden states, after the final norm, at the positions that predict them: from the prompt's
last position to the answer's last token but one. The authors' ches/ches.py sums the same ones; their script for whole
data sets, compute_preference_similarity_per_example.py, gives the model an answer without its end token and sums all of
its positions, which is the same where ours ends with one. The higher, the more alike the model finds the two answers, and
the further the chosen one is predicted to fall. States are summed in float64, whatever the model computes in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import Ids, TokenPairs
from alphapo_cli.modeling.layout.batch import CompletionTokens, PairBatch
from alphapo_cli.modeling.layout.packed import common_prefix
from alphapo_cli.modeling.lm_head import token_log_probs
from alphapo_cli.modeling.logprobs import AnswerLogProbs, share_above
from alphapo_cli.modeling.policy import PolicyModel, head_of, inference
from alphapo_cli.probe.score_names import OF_TOKENS
from alphapo_cli.probe.scoring import PairScorer
from alphapo_cli.runtime.distributed import Processes

Numbers = npt.NDArray[np.float64]


def token_scores(pairs: TokenPairs) -> dict[str, Numbers]:
    """Scores that need the token ids of both answers alone.

    `edit_distance`: least number of tokens inserted, removed or replaced to turn one answer into the other, divided by
    the longer length. `common_prefix`: tokens in common before the first difference, divided by the same.
    `length_ratio`: chosen over rejected length. Tokens that are not trained on are left out.

    Args:
        pairs: P pairs.

    Returns:
        Name -> [P], NaN for a row with one answer.
    """
    found = {name: np.full(len(pairs), np.nan) for name in OF_TOKENS}
    for i in range(len(pairs)):
        chosen, rejected = (trained_ids(pairs, side, i) for side in (0, 1))
        if len(chosen) and len(rejected):
            longer = max(len(chosen), len(rejected))
            found["edit_distance"][i] = edit_distance(chosen, rejected) / longer
            found["common_prefix"][i] = common_prefix(chosen, rejected) / longer
            found["length_ratio"][i] = len(chosen) / len(rejected)
    return found


def trained_ids(pairs: TokenPairs, side: int, position: int) -> Ids:
    """The tokens of an answer that are trained on."""
    ids = pairs.answers[side][position]
    return ids[pairs.turns[side][position] >= 0] if pairs.turns else ids


def edit_distance(a: Ids, b: Ids) -> int:
    """Levenshtein distance of two sequences of ids: insertions, removals and replacements cost 1 each."""
    if len(a) < len(b):
        a, b = b, a
    steps = np.arange(len(b) + 1)
    row = steps.copy()  # distances of the first i tokens of `a` from every beginning of `b`
    for i, token in enumerate(a, 1):
        free = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        # An insertion adds 1 to the distance on its left: a running minimum once each step along the row is taken off.
        row = np.minimum.accumulate(np.concatenate([[i], free]) - steps) + steps
    return int(row[-1])


def summed_states(hidden: Tensor, tokens: CompletionTokens) -> Tensor:
    """Sum the hidden states of each answer.

    Args:
        hidden: [N, H] last hidden states that predict the completion tokens.
        tokens: the record of these tokens.

    Returns:
        S, [K, B, H] float64; 0 for an absent answer.
    """
    answers = tokens.num_sides * tokens.num_pairs
    total = torch.zeros(answers, hidden.shape[-1], dtype=torch.float64, device=hidden.device)
    for states, answer in zip(hidden.split(1024), tokens.answer.split(1024), strict=True):  # float64 takes room
        total.index_add_(0, answer, states.double())
    return total.view(tokens.num_sides, tokens.num_pairs, -1)


def last_states(hidden: Tensor, tokens: CompletionTokens, lengths: Tensor) -> Tensor:
    """The hidden state that predicts the last token of each answer.

    Args:
        hidden: [N, H] last hidden states that predict the completion tokens.
        tokens: the record of these tokens.
        lengths: [K, B] tokens.

    Returns:
        [K, B, H] float64; without meaning for an absent answer.
    """
    if not len(hidden):
        return torch.zeros(tokens.num_sides, tokens.num_pairs, hidden.shape[-1], dtype=torch.float64)
    ends = lengths.long().flatten().cumsum(0) - 1  # answers lie one after another
    return hidden[ends.clamp(min=0)].double().view(tokens.num_sides, tokens.num_pairs, -1)


def state_scores(states: Tensor, last: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """CHES and its relatives.

    `ches`: <S_w, S_l> - |S_w|^2. `ches_normalised`: <S_w, S_l>/(n_w n_l) - |S_w|^2/n_w^2 (2410.08847 section 6, its
    form for answers of different lengths). `inner_product`: <S_w, S_l>. `last_inner_product`: <h_w, h_l>, h the state
    that predicts an answer's last token, which is to be its end (2410.08847 section 5, a score that CHES is compared with).

    Args:
        states: S, [K, B, H] float64.
        last: h, [K, B, H] float64.
        lengths: n, [K, B] tokens.

    Returns:
        Name -> [B] float64, NaN where one of the two answers is absent.
    """
    both = (lengths[0] > 0) & (lengths[1] > 0)
    chosen, rejected = states[0], states[1]
    n_chosen, n_rejected = (lengths[side].clamp(min=1).double().unsqueeze(-1) for side in (0, 1))
    mean_chosen, mean_rejected = chosen / n_chosen, rejected / n_rejected
    found = {
        # As a difference of sums first: the two products may be far larger than what they differ by.
        "ches": (chosen * (rejected - chosen)).sum(-1),
        "ches_normalised": (mean_chosen * (mean_rejected - mean_chosen)).sum(-1),
        "inner_product": (chosen * rejected).sum(-1),
        "last_inner_product": (last[0] * last[1]).sum(-1),
    }
    return {name: torch.where(both, values, math.nan) for name, values in found.items()}


def log_prob_scores(sums: Numbers, lengths: Numbers, rounding: Numbers) -> dict[str, Numbers]:
    """What the start model's log-probs say of a pair.

    Args:
        sums: [K, P] summed log-probs under the start model, nats.
        lengths: [K, P] tokens.
        rounding: [K, P] bound on the rounding error of the sums, nats.

    Returns:
        Name -> [P], NaN for a row with one answer: the chosen minus the rejected log-prob, in nats (`reference_gap`) and
        in nats per token of each answer; whether the chosen answer is the likelier one: 1, 0, or 0.5 within rounding.
    """
    both = (lengths[:2] > 0).all(axis=0)
    means = sums / np.maximum(lengths, 1)
    gap = sums[0] - sums[1]
    found = {
        "reference_gap": gap,
        "reference_gap_per_token": means[0] - means[1],
        "start_prefers_chosen": share_above(gap, np.hypot(rounding[0], rounding[1])),
    }
    return {name: np.where(both, values, np.nan) for name, values in found.items()}


def idealised_margin(reference_gap: Numbers, preference: Numbers, beta: float) -> Numbers:
    """Log-ratio of both answers under the policy that attains DPO's optimum on these preferences.

    Its sign is the pair's term of the idealised ranking accuracy (2405.19534 theorem 3.1 and corollary 3.3): the optimum
    has pi(y_w)/pi(y_l) = ref(y_w)/ref(y_l) (p/(1 - p))^(1/beta), so that a start which ranks the pair wrong may still do
    so at the optimum.

    Args:
        reference_gap: [P] log ref(y_w) - log ref(y_l), nats; of the means per token for the length-normalised accuracy.
        preference: [P] probability p that the chosen answer is preferred.
        beta: DPO's beta.

    Returns:
        [P] nats; infinite for a certain preference, for which the optimum lies at infinity (the authors' figures take
        p = 0.999 there).
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where p is no probability
        logit: Numbers = np.log(preference) - np.log1p(-preference)
    return reference_gap + logit / beta


def batch_scores(hidden: Tensor, batch: PairBatch) -> dict[str, Numbers]:
    """`state_scores` of a batch from the hidden states [N, H] that predict its completion tokens."""
    tokens = batch.tokens
    lengths = tokens.sum_over(torch.ones(len(tokens.ids), device=hidden.device))
    scores = state_scores(summed_states(hidden, tokens), last_states(hidden, tokens, lengths), lengths)
    return {name: values.cpu().numpy() for name, values in scores.items()}


def _states_and_log_probs(policy: PolicyModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    hidden = policy.hidden(batch)
    return hidden, token_log_probs(hidden, batch.tokens.ids, head_of(policy.lm), chunk_bytes=policy.chunk_bytes)


def model_scores(
    policy: PolicyModel,
    pairs: TokenPairs,
    *,
    batch_size: int,
    pad_id: int,
    processes: Processes | None = None,
    tick: Callable[[int], None] = lambda n: None,
) -> Mapping[str, Numbers]:
    """Scores that need the start model, from one forward pass.

    Args:
        policy: the start model.
        pairs: P pairs, of which the first two answers are read.
        batch_size: pairs in a forward pass.
        pad_id: fills rows up.
        processes: the processes that share the pairs; None: this one alone.
        tick: called with the number of pairs after every batch.

    Returns:
        Name (`score_names.OF_MODEL`) -> [P], NaN for a row with one answer.
    """
    scorer = PairScorer(pairs, batch_size, pad_id, processes or Processes(), policy.layout)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(policy.device):
            hidden, logps = policy.within(functools.partial(_states_and_log_probs, policy, batch))
            totals = {"sums": logps, "lengths": torch.ones_like(logps)}
            values = {name: batch.tokens.sum_over(of_tokens).cpu().numpy() for name, of_tokens in totals.items()}
            parts.append((chunk, {**values, **batch_scores(hidden, batch)}))
            tick(len(chunk))
    found = scorer.collect(parts)
    sums, lengths = found.pop("sums"), found.pop("lengths")
    answers = AnswerLogProbs(
        torch.from_numpy(sums), torch.from_numpy(lengths).clamp(min=1), token_rounding=policy.token_rounding
    )
    return {**found, **log_prob_scores(sums, lengths, answers.rounding().numpy())}

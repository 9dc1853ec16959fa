"""Log-probs of completion tokens, and sums of them per answer.

Legend: N completion tokens in a micro-batch, B pairs, K sides (chosen first), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.batch import CompletionTokens

# Tensors that a decoder layer rounds to the dtype of its activations: input and output of attention and of MLP.
ROUNDINGS_PER_LAYER = 4
# Standard errors in the bound. In a narrow dtype two, which are more than three of the standard deviations measured
# there; in float32 three, because there a wider bound hides nothing.
ROUNDING_ERRORS = {True: 3.0, False: 2.0}  # by whether activations have float32 at least
# `token_rounding` in float32 of models of up to 80 layers of width 8192: a branch of a loss is taken to be decided by
# rounding within this alone, so that a narrow dtype does not make it another loss.
BRANCH_ROUNDING = 2e-4


def token_rounding(layers: int, width: int, dtype: torch.dtype) -> float:
    """Bound the rounding error of one token's log-prob, relative to its size, by a few standard errors.

    Rounding errors are taken as independent with mean 0, so that m of them grow like sqrt(m) times the unit roundoff
    (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis, theorem 2.4). Each layer rounds
    `ROUNDINGS_PER_LAYER` times in `dtype` and `width` times in the float32 in which inner products are accumulated.
    float64 counts as float32, in which transformers computes norms and softmax.

    Measured standard deviations of an answer's sum between layouts and batches, in units of this standard error times
    `AnswerLogProbs.rounding`'s factors: SmolLM2-135M on HH-RLHF 0.03 in float32 and 0.6 in bfloat16; ten tiny
    architectures with weights of spread 0.1 against float64 0.1 and 0.2. Weights of spread 0.3, whose layers amplify
    every error, reach 0.6 and 1.1, and a few answers exceed the bound.

    Args:
        layers: decoder layers of the model.
        width: its hidden size, the length of its inner products.
        dtype: dtype of its activations.

    Returns:
        Relative error of one log-prob, without unit.
    """
    inner = torch.finfo(torch.float32).eps / 2
    unit = max(torch.finfo(dtype).eps / 2, inner)
    return ROUNDING_ERRORS[unit == inner] * math.sqrt(layers * (ROUNDINGS_PER_LAYER * unit**2 + width * inner**2))


def share_above(difference: Any, rounding: Any) -> Any:
    """Share of `difference` above 0, elementwise, where what lies within rounding is a tie.

    The sign of what lies within rounding depends on batch, layout and processor, so it counts half.

    Args:
        difference: array or tensor.
        rounding: bound on its rounding error, at least 0; a number or of the same shape.

    Returns:
        1 above `rounding`, 0 below -`rounding`, 0.5 between, of the shape of `difference`.
    """
    return ((difference > rounding) * 1.0 + (difference >= -rounding) * 1.0) / 2


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the whole next-token distribution at each completion position, all [N] float32."""

    entropy: Tensor  # nats
    sum_p2: Tensor  # sum over the vocabulary of p^2


@dataclass(frozen=True)
class TokenLogProbs:
    """Per-token log-probs of completions, with the record of the tokens they belong to."""

    logps: Tensor  # [N] float32 or wider, nats
    tokens: CompletionTokens
    statistics: TokenStatistics | None = None
    kl: Tensor | None = None  # [N] nats, KL(reference || policy) at each position, with the policy's gradient

    def answers(self) -> AnswerLogProbs:
        """Sum log-probs and count tokens per answer, [K, B]."""
        sum_over = self.tokens.sum_over
        lengths = sum_over(torch.ones_like(self.logps))
        statistics = self.statistics
        return AnswerLogProbs(
            sums=sum_over(self.logps),
            lengths=lengths,
            per_token=self,
            log_p2=None if statistics is None else sum_over(statistics.sum_p2.log()) / lengths.clamp(min=1),
            present=self.tokens.present,
            kl=None if self.kl is None else sum_over(self.kl),
        )


@dataclass(frozen=True)
class AnswerLogProbs:
    """Log-probs of answers as scores read them, and what the objective's other parts read beside them."""

    sums: Tensor  # [K, B] summed log-probs, nats; float64 where they come from tokens
    lengths: Tensor  # [K, B] completion tokens, as floats
    reference: Tensor | None = None  # [K, B] the same sums under the reference, with its token weights if there are any
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [B], numbers that came with the pairs
    per_token: TokenLogProbs | None = None
    # [3, K, B] sums, lengths and sums of squared weights under the token weights; None: each token counts once
    weighted: Tensor | None = None
    log_p2: Tensor | None = None  # [K, B] mean over the tokens of log sum p^2, if statistics were asked for
    index: Tensor | None = None  # [B] index of each pair in its data set
    chosen_tokens: float | None = None  # chosen tokens per row of the optimizer step; None: per row of this batch
    present: Tensor | None = None  # [K, B] bool, whether the row has the answer; None: every row has every answer
    kl: Tensor | None = None  # [K, B] nats, sum over an answer's positions of KL(reference || policy)
    token_rounding: float = 0.0  # relative error of a token's log-prob, see `token_rounding`; 0: the sums are exact

    def rounding(self) -> Tensor:
        """Bound the rounding error of each sum under the token weights.

        The errors of single tokens are taken as independent and proportional to the mean size of the log-prob, which
        counts as 1 nat at least.

        Returns:
            `token_rounding` max(1, |L|/n) sqrt(n), [K, B] nats.
        """
        squares = self.lengths if self.weighted is None else self.weighted[2]
        return self.token_rounding * (self.sums.detach().abs() / self.lengths).clamp(min=1) * squares.sqrt()

    def of_branches(self) -> AnswerLogProbs:
        """The same for the branches of a loss, with the rounding of float32 at most (see `BRANCH_ROUNDING`)."""
        return replace(self, token_rounding=min(self.token_rounding, BRANCH_ROUNDING))

    def shifted(self, by: Tensor) -> AnswerLogProbs:
        """The same with `by` [K, B] nats added to every sum."""
        weighted = None if self.weighted is None else torch.cat([self.weighted[:1] + by, self.weighted[1:]])
        return replace(self, sums=self.sums + by, weighted=weighted)

    def given_reference(self) -> Tensor:
        """The summed reference log-probs.

        Returns:
            `reference`, [K, B] nats.

        Raises:
            UsageError: there are no reference log-probs.
        """
        if self.reference is None:
            raise UsageError("this objective compares with a reference, and no reference log-probs were given")
        return self.reference

    def with_token_weights(self) -> AnswerLogProbs:
        """The same with sums and lengths under the token weights, as `reference` has them."""
        if self.weighted is None:
            return self
        return replace(self, sums=self.weighted[0], lengths=self.weighted[1], weighted=None)

    def log_ratio(self) -> Tensor:
        """Summed log-ratio to the reference under the token weights.

        Returns:
            [K, B] nats.

        Raises:
            UsageError: there are no reference log-probs.
        """
        return self.with_token_weights().sums - self.given_reference()

    def sequence_kl(self) -> Tensor:
        """KL(reference || policy) summed over an answer's positions.

        Returns:
            [K, B] nats.

        Raises:
            UsageError: the KL was not computed.
        """
        if self.kl is None:
            raise UsageError("this objective reads the policy's KL from its reference, and none was given")
        return self.kl

    def column_of_sides(self, name: str) -> Tensor:
        """A data column of each answer.

        Args:
            name: the column's name with {} in the place of chosen, rejected, 2, 3 and so on.

        Returns:
            [K, B].

        Raises:
            UsageError: the column of one of the K answers is missing.
        """
        count = self.sums.shape[0]
        wanted = [name.format(side) for side in ("chosen", "rejected", *range(2, count))[:count]]
        for column in wanted:
            if column not in self.columns:
                raise UsageError(f"no column '{column}' (there are: {', '.join(self.columns) or 'none'})")
        return torch.stack([self.columns[column].to(self.sums) for column in wanted])

    def first(self, sides: int) -> AnswerLogProbs:
        """The same with the first `sides` answers of each row; `per_token` stays whole."""

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:sides]

        return replace(
            self, sums=self.sums[:sides], lengths=self.lengths[:sides], reference=cut(self.reference),
            weighted=None if self.weighted is None else self.weighted[:, :sides], log_p2=cut(self.log_p2),
            present=cut(self.present), kl=cut(self.kl),
        )  # fmt: skip

    def to_float32(self) -> AnswerLogProbs:
        """The same in float32 (float64 stays), with an absent answer as one token of -1 nat.

        This placeholder has no gradient and keeps every score finite; no value that comes from it is used.

        Returns:
            A copy with `sums`, `lengths` and `reference` converted.
        """

        def convert(x: Tensor) -> Tensor:
            return x if x.dtype in (torch.float32, torch.float64) else x.float()

        def fill(x: Tensor, value: float) -> Tensor:
            return convert(x) if self.present is None else torch.where(self.present, convert(x), value)

        reference = None if self.reference is None else fill(self.reference, -1.0)
        return replace(self, sums=fill(self.sums, -1.0), lengths=fill(self.lengths, 1.0), reference=reference)


def log_softmax_at(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-softmax of logits [N, V] at `targets` [N]: [N] nats, float32 or wider."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)

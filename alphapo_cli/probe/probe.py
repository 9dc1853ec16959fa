"""The displacement probe: fixed held-out pairs, measured before the first step and again during training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.lm_head import Head, log_probs_and_statistics, observe
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel, TokenValues, attach_tokens, frozen_head, head_of, inference
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import ProbeValues, objective_values
from alphapo_cli.probe.scoring import PairScorer, _numpy, measured_sides
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.memo import Memoize, no_memo


@dataclass(frozen=True)
class BatchObservation:
    """What a forward pass over a batch of probe pairs gives beside the probe's own values."""

    chunk: list[int]  # positions of the pairs in the data set
    batch: PairBatch
    hidden: Tensor  # [N, H] last hidden states that predict the completion tokens
    logps: Tensor  # [N] nats
    head: Head
    start: tuple[Tensor, Head] | None  # chosen tokens' hidden states and output layer at step 0; None: this is step 0


Observer = Callable[[BatchObservation], None]  # called once for each batch of this process


def each(*observers: Observer | None) -> Observer | None:
    """An observer that calls all of `observers`, in order; None where there is none."""
    called = [one for one in observers if one is not None]

    def observe(seen: BatchObservation) -> None:
        for one in called:
            one(seen)

    return observe if called else None


class Probe:
    """Measurements of a run's fixed held-out pairs; made before the first step, from the policy as it then is."""

    def __init__(
        self,
        policy: PolicyModel,
        objective: Objective,
        pairs: TokenPairs,
        *,
        batch_size: int,
        pad_id: int,
        processes: Processes,
        reference: np.ndarray | None,
        kl_from: PolicyModel | None = None,
        memoize: Memoize = no_memo,
        observer: Observer | None = None,
    ) -> None:
        """Take the first measurement.

        Args:
            policy: the policy before its first step.
            objective: defines scores, rewards and gradient weights.
            pairs: P held-out pairs.
            batch_size: pairs in a forward pass.
            pad_id: fills rows up.
            processes: the processes that share the pairs.
            reference: [K, P] summed reference log-probs in nats; None: the objective reads none.
            kl_from: the reference model of KL(reference || policy); None: the objective does not read that KL.
            memoize: memo for the first measurement, used if other objectives would measure the same.
            observer: is given every batch of the first measurement, which is then not from the memo.
        """
        self.objective = objective
        sides = measured_sides(objective, pairs)
        self.scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
        self.reference, self.kl_from = reference, kl_from  # [K, P]
        self.token_rounding = policy.token_rounding
        # At step 0: the output layer, and hidden states of chosen tokens, for each batch of this process.
        self.start_head, self.start_hidden = frozen_head(policy.lm), list[Tensor]()
        if observer is not None or objective.weighs_tokens or objective.needs_statistics or objective.needs_kl:
            first = self._measured(policy, observer)
        else:
            first = memoize(f"probe {sides}", lambda: self._measured(policy))
        values, self.start_hidden = first
        self.start = self._values(values, objective.start)

    def measure(
        self, policy: PolicyModel, context: StepContext | None = None, observer: Observer | None = None
    ) -> ProbeValues:
        """Measure the policy as it is now.

        Args:
            policy: the policy.
            context: when the loss is evaluated; None: before the first step.
            observer: is given every batch.

        Returns:
            The values of every pair.
        """
        return self._values(self._measured(policy, observer)[0], context or self.objective.start)

    def _measured(
        self, policy: PolicyModel, observer: Observer | None = None
    ) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """Run the model over the pairs.

        Returns:
            (name -> values of every pair; at step 0 the chosen tokens' hidden states of each batch of this process).
        """
        rows, parts = [], []
        start_head = self.start_head() if self.start_hidden else None
        with inference(policy):
            for i, (chunk, batch) in enumerate(self.scorer.batches(policy.device)):
                start = None if start_head is None else (self.start_hidden[i], start_head)
                # A batch that is repeated so that all processes run the model equally often is measured elsewhere.
                counted = observer if chunk else None
                values, chosen = policy.within(
                    functools.partial(self._measured_batch, policy, batch, start, chunk, counted)
                )
                if start is None:
                    rows.append(chosen)
                parts.append((chunk, values))
        return self.scorer.collect(parts), rows

    def _measured_batch(
        self,
        policy: PolicyModel,
        batch: PairBatch,
        start: tuple[Tensor, Head] | None,
        chunk: list[int],
        observer: Observer | None,
    ) -> tuple[dict[str, np.ndarray], Tensor]:
        """Run the model over a batch: (name -> values of its pairs, the chosen tokens' hidden states)."""
        hidden, head = policy.hidden(batch), head_of(policy.lm)
        chosen = int((batch.tokens.side == 0).sum())  # tokens are in order of their sides
        logps, entropy, kl = observe(
            hidden, batch.tokens.ids, head, described=chosen, start=start, chunk_bytes=policy.chunk_bytes
        )
        if observer is not None:
            observer(BatchObservation(chunk, batch, hidden, logps, head, start))
        answers = replace(attach_tokens(TokenValues(logps), batch).answers(), index=batch.index)
        pair = batch.tokens.pair[:chosen]
        values = {
            "sums": _numpy(answers.sums),
            "lengths": _numpy(answers.lengths),
            "entropy": _pair_means(entropy, pair, answers),
            "kl": _pair_means(kl, pair, answers),
            **self._for_objective(answers, batch, hidden, head, policy),
        }
        return values, hidden[:chosen].clone()  # not a view, which would keep the whole tensor

    def _values(self, values: dict[str, np.ndarray], context: StepContext) -> ProbeValues:
        answers = AnswerLogProbs(
            torch.from_numpy(values["sums"]),
            torch.from_numpy(values["lengths"]),
            None if self.reference is None else torch.from_numpy(self.reference),
            columns={name: torch.from_numpy(values) for name, values in self.scorer.pairs.columns.items()},
            weighted=torch.from_numpy(values["weighted"]) if "weighted" in values else None,
            log_p2=torch.from_numpy(values["log_p2"]) if "log_p2" in values else None,
            kl=torch.from_numpy(values["sequence_kl"]) if "sequence_kl" in values else None,
            present=None if (values["lengths"] > 0).all() else torch.from_numpy(values["lengths"] > 0),
            token_rounding=self.token_rounding,
        )
        return ProbeValues(
            sums=values["sums"], lengths=values["lengths"], entropy=values["entropy"], kl=values["kl"],
            rounding=replace(answers, weighted=None).to_float32().rounding().numpy(),
            **objective_values(self.objective, answers, context),
        )  # fmt: skip

    def _for_objective(
        self, answers: AnswerLogProbs, batch: PairBatch, hidden: Tensor, head: Head, policy: PolicyModel
    ) -> dict[str, np.ndarray]:
        """Reduce to answers what the objective reads of single tokens."""
        values, tokens = {}, batch.tokens
        if self.objective.weighs_tokens:
            values["weighted"] = _numpy(self.objective.weigh(answers))
        if self.objective.needs_statistics:
            statistics = log_probs_and_statistics(hidden, tokens.ids, head, chunk_bytes=policy.chunk_bytes)[1]
            if statistics is not None:
                values["log_p2"] = _numpy(tokens.sum_over(statistics.sum_p2.log()) / answers.lengths.clamp(min=1))
        if self.kl_from is not None:
            values["sequence_kl"] = _numpy(tokens.sum_over(policy.kl(batch, self.kl_from, hidden, head)))
        return values


def _pair_means(values: Tensor, pair: Tensor, answers: AnswerLogProbs) -> np.ndarray:
    """Mean of per-token `values` over the chosen answer of each pair, [B], 0 if absent; `pair` is each token's pair."""
    total = torch.zeros(answers.sums.shape[1], dtype=torch.float64, device=values.device)
    return _numpy(total.index_add(0, pair, values.double()) / answers.lengths[0].clamp(min=1))

"""The displacement probe: fixed held-out pairs, measured before the first step and again during training."""

from __future__ import annotations

from dataclasses import replace

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


class Probe:
    """The fixed held-out pairs of a run. Made before the first step, from the policy as it then is."""

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
    ) -> None:
        """The first measurement is made here.

        Args:
            policy: before its first step.
            objective: what scores, rewards and gradient weights are of.
            pairs: P of them.
            batch_size: pairs that are read at a time.
            pad_id: fills rows up.
            processes: who measure together.
            reference: [K, P] summed reference log-probs, where the objective compares with a reference.
            kl_from: the model that KL(it || policy) is from, where the objective reads that.
            memoize: for the first measurement, as far as it is the same under other objectives.
        """
        self.objective = objective
        sides = measured_sides(objective, pairs)
        self.scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
        self.reference, self.kl_from = reference, kl_from  # [K, P]
        self.token_rounding = policy.token_rounding
        # Of the start: its head, and the chosen rows of each of this process's batches.
        self.start_head, self.start_hidden = frozen_head(policy.lm), list[Tensor]()
        if objective.weighs_tokens or objective.needs_statistics or objective.needs_kl:
            first = self._look(policy)
        else:
            first = memoize(f"probe {sides}", lambda: self._look(policy))
        values, self.start_hidden = first
        self.start = self._values(values, objective.start)

    def measure(self, policy: PolicyModel, context: StepContext | None = None) -> ProbeValues:
        """Everything the metrics need, of the policy as it is now, its loss as it is at `context`."""
        return self._values(self._look(policy)[0], context or self.objective.start)

    def _look(self, policy: PolicyModel) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """(values of every pair; at the start the chosen answers' hidden states of each of this process's batches)."""
        rows, parts = [], []
        with inference(policy):
            for i, (chunk, batch) in enumerate(self.scorer.batches(next(policy.parameters()).device)):
                hidden, head = policy.hidden(batch), head_of(policy.lm)
                chosen = int((batch.tokens.side == 0).sum())  # answers stand in order of their sides
                logps, entropy, kl = observe(
                    hidden,
                    batch.tokens.ids,
                    head,
                    described=chosen,
                    start=(self.start_hidden[i], self.start_head) if self.start_hidden else None,
                    chunk_bytes=policy.chunk_bytes,
                )
                if not self.start_hidden:
                    rows.append(hidden[:chosen].clone())  # not a view, which would keep the rest
                answers = replace(attach_tokens(TokenValues(logps), batch).answers(), index=batch.index)
                pair = batch.tokens.pair[:chosen]
                found = {
                    "sums": _numpy(answers.sums),
                    "lengths": _numpy(answers.lengths),
                    "entropy": _pair_means(entropy, pair, answers),
                    "kl": _pair_means(kl, pair, answers),
                    **self._for_objective(answers, batch, hidden, head, policy),
                }
                parts.append((chunk, found))
        return self.scorer.collect(parts), rows

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
            rounding=replace(answers, weighted=None).widened().rounding().numpy(),
            **objective_values(self.objective, answers, context),
        )  # fmt: skip

    def _for_objective(
        self, answers: AnswerLogProbs, batch: PairBatch, hidden: Tensor, head: Head, policy: PolicyModel
    ) -> dict[str, np.ndarray]:
        """What the objective reads of single tokens, put together per answer."""
        found, tokens = {}, batch.tokens
        if self.objective.weighs_tokens:
            found["weighted"] = _numpy(self.objective.weigh(answers))
        if self.objective.needs_statistics:
            facts = log_probs_and_statistics(hidden, tokens.ids, head, chunk_bytes=policy.chunk_bytes)[1]
            if facts is not None:
                found["log_p2"] = _numpy(tokens.sum_over(facts.sum_p2.log()) / answers.lengths.clamp(min=1))
        if self.kl_from is not None:
            found["sequence_kl"] = _numpy(tokens.sum_over(policy.kl(batch, self.kl_from, hidden, head)))
        return found


def _pair_means(values: Tensor, pair: Tensor, answers: AnswerLogProbs) -> np.ndarray:
    """Mean of per-token `values` over the chosen answer of each pair, [B], 0 if absent; `pair` is the token's pair."""
    total = torch.zeros(answers.sums.shape[1], dtype=torch.float64, device=values.device)
    return _numpy(total.index_add(0, pair, values.double()) / answers.lengths[0].clamp(min=1))

"""Running a model over pairs: summed log-probs of a data set (the reference), and the displacement probe.

Batches are fixed and sorted by length, so that a value does not depend on what else is measured; under several
processes each takes every n-th batch and the results are put together in the original order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.lm_head import Head, log_probs_and_statistics, observe
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel, attach_answer_ids, frozen_head, head_of
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import ProbeValues, objective_values
from alphapo_cli.probe.scoring import PairScorer, _numpy, inference, measured_sides
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
        keep: Memoize = no_memo,
    ) -> None:
        """`keep`: for the first reading, as far as it is the same under other objectives."""
        self.objective = objective
        sides = measured_sides(objective, pairs)
        self.scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
        self.reference = reference  # [K, P]
        self.token_rounding = policy.token_rounding
        # Of the start: its head, and the chosen rows of each of this process's batches.
        self.start_head, self.start_hidden = frozen_head(policy.lm), list[Tensor]()
        if objective.weighs_tokens or objective.needs_statistics or objective.needs_kl:
            first = self._look(policy)
        else:
            first = keep(f"probe {sides}", lambda: self._look(policy))
        values, self.start_hidden = first
        self.start = self._values(values, objective.start)

    def measure(self, policy: PolicyModel, moment: StepContext | None = None) -> ProbeValues:
        """Everything the metrics need, of the policy as it is now, its loss as it is at `moment`."""
        return self._values(self._look(policy)[0], moment or self.objective.start)

    def _look(self, policy: PolicyModel) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """(values of every pair; at the start the chosen answers' hidden states of each of this process's batches)."""
        rows, parts = [], []
        with inference(policy):
            for i, (chunk, batch) in enumerate(self.scorer.batches(next(policy.parameters()).device)):
                hidden, head = policy.hidden(batch), head_of(policy.lm)
                chosen = int((batch.answer < batch.num_pairs).sum())  # answers stand in order of their sides
                logps, entropy, kl = observe(
                    hidden,
                    batch.targets,
                    head,
                    described=chosen,
                    start=(self.start_hidden[i], self.start_head) if self.start_hidden else None,
                    chunk_bytes=policy.chunk_bytes,
                )
                if not self.start_hidden:
                    rows.append(hidden[:chosen].clone())  # not a view, which would keep the rest
                tokens = attach_answer_ids(logps, batch)
                answers = replace(tokens.answers(), index=batch.index)
                found = {
                    "sums": _numpy(answers.sums),
                    "lengths": _numpy(answers.lengths),
                    "entropy": _pair_means(entropy, batch.answer[:chosen], answers),
                    "kl": _pair_means(kl, batch.answer[:chosen], answers),
                    **self._for_objective(answers, hidden, head, policy.chunk_bytes),
                }
                if self.objective.needs_kl:
                    found["sequence_kl"] = _numpy(tokens.sum_over(policy.kl(batch, hidden, head)))
                parts.append((chunk, found))
        return self.scorer.collect(parts), rows

    def _values(self, values: dict[str, np.ndarray], moment: StepContext) -> ProbeValues:
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
            **objective_values(self.objective, answers, moment),
        )  # fmt: skip

    def _for_objective(
        self, answers: AnswerLogProbs, hidden: Tensor, head: Head, chunk_bytes: int
    ) -> dict[str, np.ndarray]:
        """What the objective reads of single tokens, put together per answer."""
        found = {}
        if self.objective.weighs_tokens:
            found["weighted"] = _numpy(self.objective.weigh(answers))
        if self.objective.needs_statistics:
            tokens = answers.tokens
            assert tokens is not None
            _, facts = log_probs_and_statistics(hidden, tokens.tokens, head, chunk_bytes=chunk_bytes)
            assert facts is not None
            found["log_p2"] = _numpy(tokens.sum_over(facts.sum_p2.log()) / answers.lengths.clamp(min=1))
        return found


def _pair_means(values: Tensor, pair: Tensor, answers: AnswerLogProbs) -> np.ndarray:
    """Mean of per-token `values` over the chosen answer of each pair, [B], 0 if absent; `pair` is the token's pair."""
    total = torch.zeros(answers.sums.shape[1], dtype=torch.float64, device=values.device)
    return _numpy(total.index_add(0, pair, values.double()) / answers.lengths[0].clamp(min=1))

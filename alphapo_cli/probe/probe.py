"""Running a model over pairs: summed log-probs of a data set (the reference), and the displacement probe.

Batches are fixed and sorted by length, so that a value does not depend on what else is measured; under several
processes each takes every n-th batch and the results are put together in the original order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import Logs, TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.registry import Layout
from alphapo_cli.modeling.lm_head import Head, log_probs_and_statistics, observe
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel, frozen_head, head_of, label
from alphapo_cli.objective.inputs import Moment
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import ProbeValues, objective_values
from alphapo_cli.runtime.memo import Keep, alone

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """How many processes work together, and which one this is."""

    rank: int = 0
    world: int = 1

    def gather(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes, joined in order of rank."""
        if self.world == 1:
            return mine
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; an error there is an error everywhere."""
        if self.world == 1:
            return make()
        made: list[Any] = [None]
        if self.rank == 0:
            try:
                made = [(make(), None)]
            except Exception as error:
                made = [(None, error)]
        torch.distributed.broadcast_object_list(made, src=0)
        value, problem = made[0]
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]


@contextlib.contextmanager
def inference(policy: PolicyModel) -> Iterator[None]:
    """Evaluation mode without gradients, as it was before afterwards."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), policy.precision():
            yield
    finally:
        policy.train(training)


def answers_of(policy: PolicyModel, batch: PairBatch) -> AnswerLogProbs:
    """Log-probs of a batch's answers, with the pairs' places in their data."""
    return replace(policy.score(batch).answers(), index=batch.index)


def measured_sides(objective: Objective, pairs: TokenPairs) -> int:
    """Answers of each pair that a measurement looks at: chosen and rejected, and what else the objective reads."""
    return max(2, objective.sides(pairs.num_sides))


class PairScorer:
    """A data set cut into fixed batches, and this process's share of them."""

    def __init__(
        self, pairs: TokenPairs, batch_size: int, pad_id: int, processes: Processes, layout: Layout, sides: int = 2
    ) -> None:
        self.sides = sides
        widths = pairs.prompt.lengths + pairs.longest(sides)
        order = np.argsort(widths, kind="stable").tolist()
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.pairs, self.pad_id, self.processes, self.layout = pairs, pad_id, processes, layout
        self.mine = chunks[processes.rank :: processes.world]

    def batches(self, device: torch.device) -> Iterator[tuple[list[int], PairBatch]]:
        for chunk in self.mine:
            batch = self.layout.collate([self.pairs[i] for i in chunk], pad_id=self.pad_id, sides=self.sides)
            yield chunk, batch.to(device)

    def collect(self, parts: list[tuple[list[int], dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
        """Join per-batch arrays [..., B] of all processes along their last axis, in the data set's order."""
        everything = self.processes.gather(parts)
        index = np.concatenate([np.asarray(chunk) for chunk, _ in everything])
        back = np.argsort(index)
        return {
            name: np.concatenate([values[name] for _, values in everything], axis=-1)[..., back]
            for name in everything[0][1]
        }


def score_pairs(
    policy: PolicyModel,
    pairs: TokenPairs,
    *,
    batch_size: int,
    pad_id: int,
    processes: Processes,
    tick: Callable[[int], None] = lambda n: None,
    objective: Objective | None = None,
) -> np.ndarray:
    """Summed log-probs of both answers of every pair, [2, n] float64; `tick(pairs)` after every batch.

    Tokens count as `objective` weighs them; where it reads more than two answers, it is [K, n].
    """
    sides = 2 if objective is None else measured_sides(objective, pairs)
    scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(next(policy.parameters()).device):
            answers = answers_of(policy, batch)
            weighs = objective is not None and objective.weighs_tokens
            sums = objective.weigh(answers)[0] if weighs and objective is not None else answers.sums
            parts.append((chunk, {"sums": _numpy(sums)}))
            tick(len(chunk))
    return scorer.collect(parts)["sums"]


def score_tokens(
    policy: PolicyModel,
    pairs: TokenPairs,
    *,
    batch_size: int,
    pad_id: int,
    processes: Processes,
    sides: int,
    tick: Callable[[int], None] = lambda n: None,
) -> list[Logs]:
    """Log-probs of the tokens of the first `sides` answers, for each side as its `ids` stand; 0 where none is trained."""
    scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(next(policy.parameters()).device):
            tokens = policy.score(batch)
            lengths = torch.bincount(tokens.answer, minlength=sides * len(chunk)).tolist()
            parts.append((chunk, [logps.cpu().numpy() for logps in tokens.logps.float().split(lengths)]))
            tick(len(chunk))
    found = [np.zeros(len(side.ids), np.float32) for side in pairs.answers[:sides]]
    for chunk, logps in processes.gather(parts):
        for k, side in enumerate(pairs.answers[:sides]):
            for place, values in zip(chunk, logps[k * len(chunk) :], strict=False):
                here = found[k][side.offsets[place] : side.offsets[place + 1]]
                here[pairs.turns[k][place] >= 0 if pairs.turns else ...] = values
    return found


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
        keep: Keep = alone,
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

    def measure(self, policy: PolicyModel, moment: Moment | None = None) -> ProbeValues:
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
                tokens = label(logps, batch)
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

    def _values(self, values: dict[str, np.ndarray], moment: Moment) -> ProbeValues:
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


def _numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.double().cpu().numpy()
    return array


def _pair_means(values: Tensor, pair: Tensor, answers: AnswerLogProbs) -> np.ndarray:
    """Mean of per-token `values` over the chosen answer of each pair, [B], 0 if absent; `pair` is the token's pair."""
    total = torch.zeros(answers.sums.shape[1], dtype=torch.float64, device=values.device)
    return _numpy(total.index_add(0, pair, values.double()) / answers.lengths[0].clamp(min=1))

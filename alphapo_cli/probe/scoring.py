"""Log-probs of a whole data set under a model.

Batches are fixed and sorted by length, so that a value does not depend on what else is measured. With several processes
each takes every n-th batch, and the results are joined in the original order. Processes that run the model together all
run it equally often: one that has no batch left repeats one, which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import Logs, TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.registry import Layout
from alphapo_cli.modeling.policy import PolicyModel, inference
from alphapo_cli.objective.objective import Objective
from alphapo_cli.runtime.distributed import Processes


def measured_sides(objective: Objective, pairs: TokenPairs) -> int:
    """Answers of each pair that a measurement reads: chosen, rejected, and any more that the objective reads."""
    return max(2, objective.sides(pairs.num_sides))


class PairScorer:
    """A data set cut into fixed batches, and the batches of this process."""

    def __init__(
        self, pairs: TokenPairs, batch_size: int, pad_id: int, processes: Processes, layout: Layout, sides: int = 2
    ) -> None:
        self.sides = sides
        widths = pairs.prompt.lengths + pairs.longest(sides)
        order = np.argsort(widths, kind="stable").tolist()
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.pairs, self.pad_id, self.processes, self.layout = pairs, pad_id, processes, layout
        self.own_chunks = chunks[processes.rank :: processes.world]
        rounds = -(-len(chunks) // processes.world) if processes.together else 0
        self.repeated = chunks[: max(0, rounds - len(self.own_chunks))]

    def batches(self, device: torch.device) -> Iterator[tuple[list[int], PairBatch]]:
        """Yield (indices of the pairs, their batch on `device`) for each batch of this process; no indices: repeated."""
        for n, chunk in enumerate([*self.own_chunks, *self.repeated]):
            batch = self.layout.collate([self.pairs[i] for i in chunk], pad_id=self.pad_id, sides=self.sides)
            yield chunk if n < len(self.own_chunks) else [], batch.to(device)

    def collect(self, parts: list[tuple[list[int], dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
        """Join per-batch arrays [..., B] of all processes along their last axis, in the data set's order."""
        gathered = self.processes.gather([part for part in parts if part[0]])
        index = np.concatenate([np.asarray(chunk) for chunk, _ in gathered])
        back = np.argsort(index)
        return {
            name: np.concatenate([values[name] for _, values in gathered], axis=-1)[..., back]
            for name in gathered[0][1]
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
    """Sum the log-probs of each answer of every pair; tokens count as `objective` weighs them.

    Args:
        policy: the model.
        pairs: n pairs.
        batch_size: pairs in a forward pass.
        pad_id: fills rows up.
        processes: the processes that share the pairs.
        tick: called with the number of pairs after every batch.
        objective: defines token weights and the number of answers; None: two answers, each token counts once.

    Returns:
        [K, n] float64 nats, K = 2 unless the objective reads more answers.
    """
    sides = 2 if objective is None else measured_sides(objective, pairs)
    scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(policy.device):
            answers = policy.answers(batch)
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
    """Compute the log-probs of all tokens of the first `sides` answers.

    Args:
        policy: the model.
        pairs: n pairs.
        batch_size: pairs in a forward pass.
        pad_id: fills rows up.
        processes: the processes that share the pairs.
        sides: answers of each pair.
        tick: called with the number of pairs after every batch.

    Returns:
        For each side log-probs in nats, float32, parallel to its `ids`; 0 for tokens that are not trained on.
    """
    scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(policy.device):
            tokens = policy.score(batch)
            lengths = torch.bincount(tokens.tokens.answer, minlength=sides * len(chunk)).tolist()
            parts.append((chunk, [logps.cpu().numpy() for logps in tokens.logps.float().split(lengths)]))
            tick(len(chunk))
    result = [np.zeros(len(side.ids), np.float32) for side in pairs.answers[:sides]]
    for chunk, logps in processes.gather(parts):
        for k, side in enumerate(pairs.answers[:sides]):
            for index, values in zip(chunk, logps[k * len(chunk) :], strict=False):
                of_answer = result[k][side.offsets[index] : side.offsets[index + 1]]
                of_answer[pairs.turns[k][index] >= 0 if pairs.turns else ...] = values
    return result


def _numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.double().cpu().numpy()
    return array

"""Running a model over pairs: log-probs of a whole data set.

Batches are fixed and sorted by length, so that a value does not depend on what else is measured; under several
processes each takes every n-th batch and the results are put together in the original order."""

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
    """Log-probs of the tokens of the first `sides` answers, for each side as its `ids` stand; 0 where none is trained."""
    scorer = PairScorer(pairs, batch_size, pad_id, processes, policy.layout, sides)
    parts = []
    with inference(policy):
        for chunk, batch in scorer.batches(next(policy.parameters()).device):
            tokens = policy.score(batch)
            lengths = torch.bincount(tokens.tokens.answer, minlength=sides * len(chunk)).tolist()
            parts.append((chunk, [logps.cpu().numpy() for logps in tokens.logps.float().split(lengths)]))
            tick(len(chunk))
    found = [np.zeros(len(side.ids), np.float32) for side in pairs.answers[:sides]]
    for chunk, logps in processes.gather(parts):
        for k, side in enumerate(pairs.answers[:sides]):
            for place, values in zip(chunk, logps[k * len(chunk) :], strict=False):
                here = found[k][side.offsets[place] : side.offsets[place + 1]]
                here[pairs.turns[k][place] >= 0 if pairs.turns else ...] = values
    return found


def _numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.double().cpu().numpy()
    return array

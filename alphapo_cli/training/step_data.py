"""What one optimizer step is made of, and the means that are logged over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.objective.objective import PairLoss
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step of one process."""

    micro_batches: list[PairBatch]
    num_pairs: int  # over all processes
    chosen_tokens: float  # mean length of their chosen answers, 0 for an absent one


class StepDataset(Dataset[StepBatch]):
    """Optimizer steps by number."""

    def __init__(
        self,
        inputs: TrainingInputs,
        order: DataOrder,
        rank: int,
    ) -> None:
        self.inputs, self.rank, self.layout = inputs, rank, inputs.policy.layout
        self.order = order.sized(self.layout.positions(inputs.pairs, inputs.sides), self.layout.as_widest)
        self.chosen_lengths = inputs.pairs.trained_lengths(0)

    def __len__(self) -> int:
        return self.order.total_steps

    def __getitem__(self, step: int) -> StepBatch:
        inputs = self.inputs
        batches = [
            self.layout.collate(
                [inputs.pairs[int(i)] for i in indices],
                pad_id=inputs.pad_id,
                weights=weights,
                reference=None if inputs.reference is None else torch.from_numpy(inputs.reference[:, indices]),
                sides=inputs.sides,
            )
            for indices, weights in self.order.micro_batches(step, self.rank)
        ]
        everyone = self.order.pairs(step)
        return StepBatch(batches, len(everyone), float(self.chosen_lengths[everyone].mean()))


class MetricSums:
    """Sums over pairs since the last log, in float64, so that a logged value is the mean over exactly those pairs."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # name -> [2], the sum and how many rows have it

    def add(self, result: PairLoss, batch: PairBatch, lengths: Tensor, sums: Tensor) -> None:
        """Fold in one micro-batch; `lengths`, `sums` [K, B] of the answers."""
        counted = batch.weight > 0
        present = [counted & (side > 0) for side in lengths[:2]]
        self._fold("loss", result.loss, counted)
        for side, name in enumerate(("chosen", "rejected")[: batch.num_sides]):
            self._fold(f"rewards/{name}", result.rewards[side], present[side])
            self._fold(f"logps/{name}", sums[side] / lengths[side], present[side])
            self._fold(f"logps/{name}_sum", sums[side], present[side])
        if result.margins is not None and result.accuracy is not None:
            both = present[0] & present[1]
            self._fold("rewards/margins", result.margins, both)
            self._fold("rewards/accuracies", result.accuracy, both)

    def restore(self, sums: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from `sums` as they were once."""
        self.sums = {name: value.to(device) for name, value in sums.items()}

    def _fold(self, name: str, value: Tensor, rows: Tensor) -> None:
        # where, not a product: a filling pair or an absent answer must not spread a NaN
        part = torch.stack([torch.where(rows, value.detach().double(), 0.0).sum(), rows.double().sum()])
        self.sums[name] = self.sums[name] + part if name in self.sums else part

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all processes, NaN for what no row has, and an empty window again."""
        names = sorted(self.sums)
        total = reduce(torch.stack([self.sums[n] for n in names])).tolist()
        self.sums = {}
        return {
            f"train/{n}": value / count if count else float("nan")
            for n, (value, count) in zip(names, total, strict=True)
        }

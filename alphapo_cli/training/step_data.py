"""The data of one optimizer step, and sums for the means that are logged over several."""

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
    """The data of one optimizer step on one process."""

    micro_batches: list[PairBatch]
    num_pairs: int  # over all processes
    chosen_tokens: float  # mean length of their chosen answers, 0 for an absent one


class StepDataset(Dataset[StepBatch]):
    """A data set of optimizer steps, by number."""

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
        step_pairs = self.order.pairs(step)
        return StepBatch(batches, len(step_pairs), float(self.chosen_lengths[step_pairs].mean()))


class MetricSums:
    """Sums over pairs since the last log, in float64, so that a logged value is the mean over exactly those pairs."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # name -> [2], sum and number of rows

    def add(self, result: PairLoss, batch: PairBatch, lengths: Tensor, sums: Tensor) -> None:
        """Add one micro-batch; `lengths`, `sums` [K, B] of its answers."""
        counted = batch.weight > 0
        present = [counted & (side > 0) for side in lengths[:2]]
        self._accumulate("loss", result.loss, counted)
        for side, name in enumerate(("chosen", "rejected")[: batch.num_sides]):
            self._accumulate(f"rewards/{name}", result.rewards[side], present[side])
            self._accumulate(f"logps/{name}", sums[side] / lengths[side], present[side])
            self._accumulate(f"logps/{name}_sum", sums[side], present[side])
        if result.margins is not None and result.accuracy is not None:
            both = present[0] & present[1]
            self._accumulate("rewards/margins", result.margins, both)
            self._accumulate("rewards/accuracies", result.accuracy, both)

    def restore(self, sums: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from the sums of a checkpoint."""
        self.sums = {name: value.to(device) for name, value in sums.items()}

    def _accumulate(self, name: str, value: Tensor, rows: Tensor) -> None:
        # where, not a product: a filler pair or an absent answer must not spread a NaN
        part = torch.stack([torch.where(rows, value.detach().double(), 0.0).sum(), rows.double().sum()])
        self.sums[name] = self.sums[name] + part if name in self.sums else part

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all processes, NaN for a metric without rows; the sums start again at zero."""
        names = sorted(self.sums)
        total = reduce(torch.stack([self.sums[n] for n in names])).tolist()
        self.sums = {}
        return {
            f"train/{n}": value / count if count else float("nan")
            for n, (value, count) in zip(names, total, strict=True)
        }

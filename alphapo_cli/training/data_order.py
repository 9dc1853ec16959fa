"""Which pairs make up which optimizer step: a pure function of the seed, never of how a step is split.

An optimizer step is one item of the data loader; its micro-batches are made inside it. So an accumulation is never cut
in half, a resumed run starts at a step, and the last, ragged step of an epoch is simply a step of fewer pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from alphapo_cli.config.schema import TrainerConfig


@dataclass(frozen=True)
class DataOrder:
    """The order of pairs over a run."""

    num_pairs: int
    micro_pairs: int  # pairs a process holds at a time
    accumulation: int
    world: int
    total_steps: int
    seed: int
    micro_tokens: int | None = None  # positions a process holds at a time; None: micro_pairs pairs
    sizes: np.ndarray | None = field(default=None, repr=False, compare=False)  # [num_pairs], see `sized`
    as_widest: bool = False

    @classmethod
    def of(cls, cfg: TrainerConfig, num_pairs: int, world: int, seed: int) -> DataOrder:
        """`max_steps` wins over `num_train_epochs` when it is above 0."""
        per_step = cfg.per_device_train_batch_size * cfg.gradient_accumulation_steps * world
        per_epoch = -(-num_pairs // per_step)
        total = cfg.max_steps if cfg.max_steps > 0 else max(1, math.ceil(cfg.num_train_epochs * per_epoch - 1e-9))
        return cls(
            num_pairs,
            cfg.per_device_train_batch_size,
            cfg.gradient_accumulation_steps,
            world,
            total,
            seed,
            cfg.tokens_per_batch,
        )

    def sized(self, sizes: np.ndarray, as_widest: bool) -> DataOrder:
        """The same steps, their pairs dealt to micro-batches by the positions they take.

        `sizes` [num_pairs]; `as_widest`: every pair of a micro-batch takes as many as its largest one, so that pairs of
        like size go together.
        """
        return replace(self, sizes=sizes, as_widest=as_widest)

    @property
    def pairs_per_step(self) -> int:
        return self.micro_pairs * self.accumulation * self.world

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_pairs // self.pairs_per_step)

    def pairs(self, step: int) -> np.ndarray:
        """Indices of the pairs of optimizer step `step` (from 0), each once: at most `pairs_per_step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.num_pairs)
        start = within * self.pairs_per_step
        return order[start : start + self.pairs_per_step]

    def pairs_in(self, steps: range) -> int:
        """How many pairs `steps` train on together."""
        lasts = sum((step + 1) % self.steps_per_epoch == 0 for step in steps)
        missing = self.steps_per_epoch * self.pairs_per_step - self.num_pairs  # of an epoch's last step
        return len(steps) * self.pairs_per_step - lasts * missing

    def micro_batches(self, step: int, rank: int) -> list[tuple[np.ndarray, list[float]]]:
        """(indices, weights) of each micro-batch of one process.

        Every process gets as many as the others, as a gradient reduction needs; one that runs out of pairs repeats one
        with weight 0.
        """
        pairs = self.pairs(step)
        parts = self._parts(pairs)
        rounds = -(-len(parts) // self.world)
        batches = []
        for k in range(rounds):
            place = k * self.world + rank
            mine = parts[place] if place < len(parts) else pairs[:0]
            batches.append((mine, [1.0] * len(mine)) if len(mine) else (pairs[:1], [0.0]))
        return batches

    def _parts(self, pairs: np.ndarray) -> list[np.ndarray]:
        """A step's pairs cut into micro-batches: by number, or so that each takes at most `micro_tokens` positions."""
        if self.sizes is not None and (self.as_widest or self.micro_tokens is not None):
            pairs = pairs[np.argsort(-self.sizes[pairs], kind="stable")]
        if self.sizes is None or self.micro_tokens is None:
            return [pairs[i : i + self.micro_pairs] for i in range(0, len(pairs), self.micro_pairs)]
        parts: list[list[int]] = []
        total = 0
        for pair, size in zip(pairs.tolist(), self.sizes[pairs].tolist(), strict=True):
            # Sorted: the first pair of a micro-batch is its largest. One above the limit is alone.
            total = (len(parts[-1]) + 1) * int(self.sizes[parts[-1][0]]) if parts and self.as_widest else total + size
            if not parts or total > self.micro_tokens:
                parts.append([])
                total = size
            parts[-1].append(pair)
        return [np.asarray(part) for part in parts]

    def epoch(self, step: int) -> float:
        """Epochs done after `step` optimizer steps."""
        return step / self.steps_per_epoch


PROBE_EVERY = 16


def probe_every(wanted: int | None, pairs: int, pairs_per_step: int) -> int:
    """Optimizer steps between two readings of a probe of `pairs` pairs.

    Where nothing is asked for, 16, or as many more as it takes for readings on the way to cost no more than about a
    sixteenth of training: reading a pair takes a forward pass, training on it three times that. Those before the first
    and after the last step come on top, which tells in short runs.
    """
    return wanted or max(PROBE_EVERY, math.ceil(16 * pairs / (3 * pairs_per_step)))


@dataclass
class StepIndices:
    """Sampler: the optimizer steps from `start` on. `start` is set when a run resumes."""

    total: int
    start: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total

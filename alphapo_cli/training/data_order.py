"""The pairs of each optimizer step: a pure function of the seed, never of how a step is split.

An optimizer step is one item of the data loader; its micro-batches are made inside it. So an accumulation is never cut
in half, a resumed run starts at a step, and the last, ragged step of an epoch is simply a step of fewer pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.errors import UsageError


@dataclass(frozen=True)
class DataOrder:
    """The order of pairs over a run of `total_steps` optimizer steps."""

    num_pairs: int
    micro_pairs: int  # pairs of a micro-batch
    accumulation: int
    world: int  # processes
    total_steps: int
    seed: int
    micro_tokens: int | None = None  # positions of a micro-batch; None: micro_pairs pairs
    sizes: np.ndarray | None = field(default=None, repr=False, compare=False)  # [num_pairs], see `sized`
    as_widest: bool = False
    kind: str = "shuffled"  # or given, stages: see TrainerConfig.order
    stages: np.ndarray | None = field(default=None, repr=False, compare=False)  # [num_pairs], of the kind stages
    shared_by: int | None = None  # processes that share the micro-batches of a step; None: `world`

    @classmethod
    def of(
        cls, cfg: TrainerConfig, num_pairs: int, world: int, seed: int, stages: np.ndarray | None = None
    ) -> DataOrder:
        """Make the order of a configuration; `max_steps` above 0 overrides `num_train_epochs`.

        Args:
            cfg: the trainer's configuration.
            num_pairs: pairs of an epoch.
            world: processes.
            seed: of the shuffles.
            stages: [num_pairs] the pairs' column "stage"; None where they have none.

        Returns:
            The order.

        Raises:
            UsageError: `cfg.order` is stages, and a pair has none.
        """
        if cfg.order == "stages" and (stages is None or np.isnan(stages).any()):
            raise UsageError(
                'trainer.order=stages: the pairs have no column "stage", as alphapo pairs writes it; leave the setting out'
            )
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
            kind=cfg.order,
            stages=stages if cfg.order == "stages" else None,
        )

    def divided(self, processes: int) -> DataOrder:
        """Let several processes divide each step among them; the pairs of a step stay the same.

        Args:
            processes: their number. Where a step has fewer micro-batches, these become smaller, none larger.

        Returns:
            The order.

        Raises:
            UsageError: a step has fewer pairs than there are processes.
        """
        pairs, parts = self.pairs_per_step, self.accumulation * self.world
        if pairs < processes:
            raise UsageError(
                f"{processes} processes cannot divide optimizer steps of {pairs} pair(s) among them; use at most {pairs}, "
                "or raise trainer.gradient_accumulation_steps"
            )
        if parts >= processes or self.micro_tokens is not None:
            return replace(self, shared_by=processes)
        parts = next(count for count in range(processes, pairs + 1) if pairs % count == 0)
        return replace(self, micro_pairs=pairs // parts, accumulation=parts, world=1, shared_by=processes)

    def sized(self, sizes: np.ndarray, as_widest: bool) -> DataOrder:
        """Assign the pairs of each step to micro-batches by the positions they take; the steps stay the same.

        Args:
            sizes: [num_pairs] positions of each pair.
            as_widest: whether every pair of a micro-batch takes as many positions as its largest one, so that pairs of
                like size go together.

        Returns:
            The order with these sizes.
        """
        return replace(self, sizes=sizes, as_widest=as_widest)

    @property
    def pairs_per_step(self) -> int:
        """Pairs of a full optimizer step, over all processes."""
        return self.micro_pairs * self.accumulation * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, with its ragged last one."""
        return -(-self.num_pairs // self.pairs_per_step)

    def pairs(self, step: int) -> np.ndarray:
        """Indices of the pairs of optimizer step `step` (from 0), each once: at most `pairs_per_step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _shuffled(self.seed, epoch, self.num_pairs)
        if self.kind == "given":
            order = np.arange(self.num_pairs)
        elif self.stages is not None:
            order = order[np.argsort(self.stages[order], kind="stable")]
        start = within * self.pairs_per_step
        return order[start : start + self.pairs_per_step]

    def pairs_in(self, steps: range) -> int:
        """Number of pairs that `steps` train on together."""
        lasts = sum((step + 1) % self.steps_per_epoch == 0 for step in steps)
        missing = self.steps_per_epoch * self.pairs_per_step - self.num_pairs  # of an epoch's last step
        return len(steps) * self.pairs_per_step - lasts * missing

    def micro_batches(self, step: int, rank: int) -> list[tuple[np.ndarray, list[float]]]:
        """Return (indices, weights) of each micro-batch of one process.

        Every process gets as many as the others, as a gradient reduction needs; one that runs out of pairs repeats one
        with weight 0.
        """
        pairs = self.pairs(step)
        parts = self._parts(pairs)
        world = self.shared_by or self.world
        rounds = -(-len(parts) // world)
        batches = []
        for k in range(rounds):
            place = k * world + rank
            indices = parts[place] if place < len(parts) else pairs[:0]
            batches.append((indices, [1.0] * len(indices)) if len(indices) else (pairs[:1], [0.0]))
        return batches

    def parts(self, step: int) -> list[np.ndarray]:
        """The micro-batches of all processes at optimizer step `step`: one after another, in turns of as many as there are."""
        return self._parts(self.pairs(step))

    def _parts(self, pairs: np.ndarray) -> list[np.ndarray]:
        """Cut a step's pairs into micro-batches: by number, or so that each takes at most `micro_tokens` positions."""
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


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    """The pairs of an epoch in their shuffled order, [count]; kept, since every step of the epoch asks for it."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
    order.flags.writeable = False
    return order


PROBE_EVERY = 16


def probe_every(wanted: int | None, pairs: int, pairs_per_step: int) -> int:
    """Optimizer steps between two measurements of a probe of `pairs` pairs.

    By default 16, or as many more as keep the measurements during training at no more than about a sixteenth of its
    cost: measuring a pair takes a forward pass, training on it three times that. The measurements before the first and
    after the last step are not counted, which matters in short runs.

    Args:
        wanted: the configured number; None: the default.
        pairs: pairs of the probe.
        pairs_per_step: pairs of an optimizer step.

    Returns:
        Optimizer steps.
    """
    return wanted or max(PROBE_EVERY, math.ceil(16 * pairs / (3 * pairs_per_step)))


@dataclass
class StepIndices:
    """A sampler of the optimizer steps from `start` on; `start` is set when a run resumes."""

    total: int
    start: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total

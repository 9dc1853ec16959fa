"""A transformers.Trainer whose loss scaling, data order and logging are replaced by exact ones.

Trainer keeps optimizer, scheduler, clipping, mixed precision, DDP and the step loop. Dropped: its gradient accumulation
(its defaults weigh the pairs of a ragged step wrongly), its data loader preparation (which repeats early samples under
several processes) and its running loss. An item of the loader is a whole optimizer step; `training_step` runs its
micro-batches and divides by the number of pairs in the step over all processes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import attach_tokens
from alphapo_cli.modeling.sharding import gathered
from alphapo_cli.objective.inputs import PartState, StepContext
from alphapo_cli.runs.checkpoints import TrainingCheckpoint
from alphapo_cli.runtime import rng_state
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.training import guards
from alphapo_cli.training.data_order import DataOrder, StepIndices
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.step_data import MetricSums, StepBatch, StepDataset
from alphapo_cli.training.training_state import Shards, dealt, optimizer_state, put_back, taken


class StepHooks:
    """What a run does after each optimizer step, by default nothing; `PreferenceTrainer.after_step` has the order."""

    def log(self, step: int, row: dict[str, float]) -> None:
        """Log `row`, the means over the pairs since the last log."""

    def measure(self, step: int) -> dict[str, Any]:
        """Measure the policy if a measurement is due; the metrics, empty otherwise."""
        return {}

    def guard(self, step: int, row: Mapping[str, Any]) -> bool:
        """Whether to stop after `step`, whose metrics are `row`; the same on every process."""
        return False

    def save(self, step: int, *, stopping: bool) -> None:
        """Write a checkpoint if one is due."""


class PreferenceTrainer(Trainer):
    """Trains a `PolicyModel` with an `Objective`."""

    def __init__(
        self,
        inputs: TrainingInputs,
        order: DataOrder,
        args: TrainingArguments,
        hooks: StepHooks | None = None,
        *,
        logging_steps: int = 1,
        check_finite: bool = True,
    ) -> None:
        """Set up; optimizer and learning-rate schedule are made when training starts.

        Args:
            inputs: what training starts from.
            order: which pairs make up which step.
            args: optimizer and the like, see `training_arguments`.
            hooks: what the run does after each step.
            logging_steps: optimizer steps from one log to the next.
            check_finite: whether a loss that is not finite is an error.
        """
        super().__init__(model=inputs.policy, args=args)
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.inputs, self.order, self.hooks = inputs, order, hooks or StepHooks()
        self.policy, self.objective = inputs.policy, inputs.objective
        self.sampler = StepIndices(order.total_steps)
        self.steps = StepDataset(inputs, order, args.process_index)
        self.sums = MetricSums()
        self.logging_steps = logging_steps
        self.check_finite = check_finite
        self.grad_norm: float | None = None
        self.first_step = 0
        self.part_states: Mapping[str, PartState] = self.objective.start.states
        self.used_context = self.objective.start  # context of the last step's loss
        self.used_learning_rate = 0.0  # of the last step
        self._resumed: TrainingCheckpoint | None = None
        self.add_callback(_StepCallback(self))

    @property
    def context(self) -> StepContext:
        """Progress of training and states of the parts, for the objective."""
        return StepContext(self.state.global_step / max(self.order.total_steps, 1), self.part_states)

    def after_step(self, step: int) -> bool:
        """Return whether training ends here, after all that follows an optimizer step, in this order.

        The reference moves first, so that a measurement uses it as the next step will; a measurement is on record
        before a guard can end the run; a checkpoint is last, and so holds all of it.
        """
        if self.inputs.moving is not None:
            self.inputs.moving.after_step(step, self.policy)
        if step % self.logging_steps == 0 or step == self.order.total_steps:
            self.hooks.log(step, self._logged(step))
        row = self.hooks.measure(step)
        stopping = self.hooks.guard(step, {**row, "train/grad_norm": self.grad_norm})
        self.hooks.save(step, stopping=stopping)
        return stopping

    def _logged(self, step: int) -> dict[str, float]:
        """Means over the pairs since the last log, gradient norm, learning rate, epoch and the objective's metrics."""
        row = self.sums.means(self.reduce_sum)
        row["train/grad_norm"] = self.grad_norm if self.grad_norm is not None else float("nan")
        row["train/learning_rate"] = self.used_learning_rate
        row["train/epoch"] = self.order.epoch(step)
        return row | self.objective.readings(self.used_context)

    def on_probe(self, row: Mapping[str, Any]) -> None:
        """Update the states of the objective's parts from a measurement of the probe."""
        self.part_states = self.objective.on_probe(self.part_states, row)

    def checkpoint(
        self, processes: Processes, *, cost: Mapping[str, Any], last_probe: Mapping[str, Any], stopped: str | None
    ) -> tuple[TrainingCheckpoint, Shards]:
        """Collect the state of training; to be called between two steps, on every process.

        Returns:
            The checkpoint, and the tensors that processes share, which are not in it; none where the policy is whole.
        """
        own = {"rng": rng_state.state(), "sums": {k: v.cpu() for k, v in self.sums.sums.items()}}
        state = taken(self.policy, self.optimizer, self.inputs.moving)
        return TrainingCheckpoint(
            step=int(self.state.global_step),
            **state.in_file,
            lr_scheduler=self.lr_scheduler.state_dict(),
            processes=processes.gather([own]),
            part_states={kind: dict(state) for kind, state in self.part_states.items()},
            cost=cost,
            last_probe=last_probe,
            stopped=stopped,
        ), state.shards

    def last_checkpoint(
        self, step: int, *, cost: Mapping[str, Any], last_probe: Mapping[str, Any]
    ) -> tuple[TrainingCheckpoint, Shards]:
        """Collect what is left to save after the last step: the weights, without what only another step would read."""
        state = taken(self.policy)
        return TrainingCheckpoint(
            step=step, **state.in_file, lr_scheduler={}, processes=(), part_states={}, cost=cost, last_probe=last_probe
        ), state.shards

    def resume(self, checkpoint: TrainingCheckpoint) -> None:
        """Let `train` resume from `checkpoint`."""
        self._resumed = checkpoint
        self.first_step = self.sampler.start = checkpoint.step

    def _load(self, checkpoint: TrainingCheckpoint) -> None:
        """Load all of a checkpoint but the random generators, which follow at the first step."""
        put_back(checkpoint, self.policy, self.inputs.moving)
        self.optimizer.load_state_dict(optimizer_state(checkpoint, self.optimizer))
        self.lr_scheduler.load_state_dict(checkpoint.lr_scheduler)
        self.state.global_step = self.first_step
        self.part_states = checkpoint.part_states
        self.sums.restore(self._dealt(checkpoint)[1], self.args.device)

    def _dealt(self, checkpoint: TrainingCheckpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return dealt(checkpoint.processes, self.args.process_index, self.args.world_size)

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        """A loader of whole optimizer steps, not prepared by accelerate."""
        return DataLoader(self.steps, batch_size=None, sampler=self.sampler, collate_fn=lambda step: step)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[StepBatch], None]:
        """The next items of the loader, without Trainer's count of tokens."""
        return list(itertools.islice(epoch_iterator, num_batches)), None

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of all micro-batches; this process's summed loss over the step's number of pairs."""
        if self._resumed is not None:
            # Not earlier: creating the data loader's iterator draws from torch's generator.
            rng_state.restore(self._dealt(self._resumed)[0])
            self._resumed = None
        model.train()
        total = torch.zeros((), device=self.args.device)
        last = len(inputs.micro_batches) - 1
        ready = self._update_states(model, inputs) if self.objective.observes else None
        self.used_context = self.context
        for i, cpu_batch in enumerate(inputs.micro_batches):
            batch = cpu_batch.to(self.args.device)
            sync = contextlib.nullcontext() if i == last else self.accelerator.no_sync(model)
            with sync:
                answers = ready if ready is not None else self._answers(model, batch, inputs)
                result = self.objective(answers, self.used_context)
                # DDP averages gradients over processes; the step's gradient is the mean over its pairs.
                share = torch.where(batch.weight > 0, result.loss, 0.0).sum() / inputs.num_pairs
                self.accelerator.backward(share * self.args.world_size)
            total += share.detach()
            self.sums.add(result, batch, answers.lengths, answers.sums)
        if self.check_finite:
            self._check_loss(total)
        return total

    def _check_loss(self, total: Tensor) -> None:
        """Check, in all processes, that the loss of each is finite; raises AlphapoError in all if one is not."""
        bad = self.reduce_sum((~torch.isfinite(total)).double())
        if bad:
            own = None if torch.isfinite(total) else str(total.item())
            found = Processes(self.args.process_index, self.args.world_size).same(own)
            raise AlphapoError(guards.broken("the loss", str(found), self.state.global_step + 1))

    def _answers(self, model: Any, batch: PairBatch, inputs: StepBatch) -> AnswerLogProbs:
        moving = self.inputs.moving
        # First: a sharded reference is at rest after it, and the policy's pass may leave it gathered for the backward one.
        reference = batch.reference if moving is None else moving.sums(batch, self.objective)
        answers = attach_tokens(model(batch, self.inputs.wanted), batch).answers()
        return replace(
            answers, reference=reference, columns=batch.columns, index=batch.index,
            chosen_tokens=inputs.chosen_tokens, token_rounding=self.policy.token_rounding,
        )  # fmt: skip

    def _update_states(self, model: Any, inputs: StepBatch) -> AnswerLogProbs | None:
        """Update the states of the parts from the whole step, over all processes, before its loss.

        Returns:
            The answers with their graph if the step is one micro-batch; None if they are to be computed again.
        """
        once = len(inputs.micro_batches) == 1
        own: list[tuple[int, dict[str, Tensor]]] = []
        answers = None
        with contextlib.nullcontext() if once else torch.no_grad():
            for cpu_batch in inputs.micro_batches:
                batch = cpu_batch.to(self.args.device)
                answers = self._answers(model, batch, inputs)
                seen = self.objective.observe(answers, self.context)
                for row in torch.nonzero(cpu_batch.weight > 0).flatten().tolist():
                    own.append((int(cpu_batch.index[row]), {kind: values[row] for kind, values in seen.items()}))
        gathered = Processes(self.args.process_index, self.args.world_size).gather(own)
        gathered.sort(key=lambda item: item[0])
        observed = {kind: torch.stack([values[kind] for _, values in gathered]) for kind in gathered[0][1]}
        self.part_states = self.objective.at(self.context).update(self.part_states, observed)
        return answers if once else None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = gathered(norm) if isinstance(norm, Tensor) else norm
        self.grad_norm = None if norm is None else float(norm)
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: Trainer's count of floating-point operations is not used."""
        return 0

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values


class _StepCallback(TrainerCallback):
    """Passes transformers' events on to the trainer."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load a checkpoint, now that optimizer and learning-rate schedule exist."""
        if self.trainer._resumed is not None:
            self.trainer._load(self.trainer._resumed)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.used_learning_rate = float(self.trainer.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.after_step(int(state.global_step)):
            control.should_training_stop = True

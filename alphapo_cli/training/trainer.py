"""transformers.Trainer, with its loss scaling, data order and logging replaced by exact ones.

Trainer keeps optimizer, scheduler, clipping, mixed precision, DDP and the step loop. Dropped: its gradient accumulation
(its defaults weigh the pairs of a ragged step wrongly), its data loader preparation (which repeats early samples under
several processes) and its running loss. An item of the loader is a whole optimizer step; `training_step` runs its
micro-batches and divides by the number of pairs in the step over all processes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import AlphapoError, UsageError, nearest
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel, attach_answer_ids
from alphapo_cli.objective.inputs import PartState, StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.runtime import rng_state
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.training import guards
from alphapo_cli.training.data_order import DataOrder, StepIndices
from alphapo_cli.training.moving_reference import MovingReference
from alphapo_cli.training.step_data import MetricSums, StepBatch, StepDataset


class PreferenceTrainer(Trainer):
    """Trains a `PolicyModel` by an `Objective`; everything it logs goes to `on_log(step, row)`."""

    def __init__(
        self,
        policy: PolicyModel,
        objective: Objective,
        pairs: TokenPairs,
        schedule: DataOrder,
        args: TrainingArguments,
        *,
        pad_id: int,
        reference: np.ndarray | None,
        logging_steps: int,
        on_log: Callable[[int, dict[str, float]], None],
        check_finite: bool = True,
        moving: MovingReference | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(model=policy, args=args, callbacks=[*callbacks])
        self.policy = policy
        policy.statistics = objective.needs_statistics
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.objective = objective
        self.moving = moving
        self.schedule = schedule
        self.sampler = StepIndices(schedule.total_steps)
        sides = objective.sides(pairs.num_sides)
        self.steps = StepDataset(pairs, schedule, args.process_index, pad_id, sides, reference, policy.layout)
        self.window = MetricSums()
        self.logging_steps = logging_steps
        self.on_log = on_log
        self.check_finite = check_finite
        self.grad_norm: float | None = None
        self.first_step = 0
        self.memory: Mapping[str, PartState] = objective.start.memory  # what its parts remember of earlier steps
        self.used_moment = objective.start
        self._resumed: dict[str, Any] | None = None
        self.add_callback(_Restore(self))
        self.add_callback(_Log(self))

    @property
    def moment(self) -> StepContext:
        """Where training is, for the objective."""
        return StepContext(self.state.global_step / max(self.schedule.total_steps, 1), self.memory)

    def snapshot(self, processes: Processes) -> dict[str, Any]:
        """All that a continued run needs beside the weights it starts from; to be called between two steps."""
        mine = {"generators": rng_state.state(), "window": {k: v.cpu() for k, v in self.window.sums.items()}}
        return {
            "weights": {name: tensor.detach().cpu().clone() for name, tensor in self._trained()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "processes": processes.gather([mine]),
            "objective": {kind: dict(memory) for kind, memory in self.memory.items()},
            "reference": self.moving.state() if self.moving is not None else {},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Let `train` go on from `snapshot` (with its "step")."""
        self._resumed = snapshot
        self.first_step = self.sampler.start = int(snapshot["step"])

    def _trained(self) -> list[tuple[str, Tensor]]:
        """Parameters that train, and buffers that are part of the state; frozen weights are where they came from."""
        frozen = {name for name, p in self.policy.named_parameters(remove_duplicate=False) if not p.requires_grad}
        seen: set[int] = set()
        found = []
        for name, tensor in self.policy.state_dict(keep_vars=True).items():
            if name not in frozen and id(tensor) not in seen:  # tied weights once
                seen.add(id(tensor))
                found.append((name, tensor))
        return found

    @torch.no_grad()
    def load_weights(self, stored: Mapping[str, Tensor]) -> None:
        """Put a snapshot's "weights" in place."""
        for name, tensor in self._trained():
            tensor.copy_(stored[name])

    def _load(self) -> None:
        """Weights, optimizer and schedule of the snapshot; generators follow at the first step."""
        assert self._resumed is not None
        self.load_weights(self._resumed["weights"])
        self.optimizer.load_state_dict(self._resumed["optimizer"])
        self.lr_scheduler.load_state_dict(self._resumed["schedule"])
        self.state.global_step = self.first_step
        self.memory = self._resumed["objective"]
        if self.moving is not None:
            self.moving.load(self._resumed["reference"])
        sums = self._resumed["processes"][self.args.process_index]["window"]
        self.window.sums = {name: value.to(self.args.device) for name, value in sums.items()}

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        return DataLoader(self.steps, batch_size=None, sampler=self.sampler, collate_fn=_as_is)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[StepBatch], None]:
        return list(_take(epoch_iterator, num_batches)), None

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> Tensor:
        if self._resumed is not None:
            # Not earlier: making the data loader's iterator draws from torch's generator.
            rng_state.restore(self._resumed["processes"][self.args.process_index]["generators"])
            self._resumed = None
        model.train()
        total = torch.zeros((), device=self.args.device)
        last = len(inputs.micro_batches) - 1
        ready = self._settle(model, inputs) if self.objective.observes else None
        self.used_moment = self.moment
        for i, cpu_batch in enumerate(inputs.micro_batches):
            batch = cpu_batch.to(self.args.device)
            sync = contextlib.nullcontext() if i == last else self.accelerator.no_sync(model)
            with sync:
                answers = ready if ready is not None else self._answers(model, batch, inputs)
                result = self.objective(answers, self.used_moment)
                # DDP averages gradients over processes; the step's gradient is the mean over its pairs.
                share = torch.where(batch.weight > 0, result.loss, 0.0).sum() / inputs.num_pairs
                self.accelerator.backward(share * self.args.world_size)
            total += share.detach()
            self.window.add(result, batch, answers.lengths, answers.sums)
        if self.check_finite and not torch.isfinite(total):
            raise AlphapoError(guards.broken("the loss", total.item(), self.state.global_step + 1))
        return total

    def _answers(self, model: Any, batch: PairBatch, inputs: StepBatch) -> AnswerLogProbs:
        answers = attach_answer_ids(model(batch), batch).answers()
        reference = batch.reference if self.moving is None else self.moving.sums(batch, self.objective)
        return replace(
            answers, reference=reference, columns=batch.columns, index=batch.index,
            chosen_tokens=inputs.chosen_tokens, token_rounding=self.policy.token_rounding,
        )  # fmt: skip

    def _settle(self, model: Any, inputs: StepBatch) -> AnswerLogProbs | None:
        """Show the objective the whole step, over all processes, before its loss.

        Returns the answers with their graph where the step is one micro-batch, None where they are to be made again.
        """
        once = len(inputs.micro_batches) == 1
        mine: list[tuple[int, dict[str, Tensor]]] = []
        answers = None
        with contextlib.nullcontext() if once else torch.no_grad():
            for cpu_batch in inputs.micro_batches:
                batch = cpu_batch.to(self.args.device)
                answers = self._answers(model, batch, inputs)
                seen = self.objective.observe(answers, self.moment)
                for row in torch.nonzero(cpu_batch.weight > 0).flatten().tolist():
                    mine.append((int(cpu_batch.index[row]), {kind: values[row] for kind, values in seen.items()}))
        everyone = Processes(self.args.process_index, self.args.world_size).gather(mine)
        everyone.sort(key=lambda item: item[0])
        observed = {kind: torch.stack([values[kind] for _, values in everyone]) for kind in everyone[0][1]}
        self.memory = self.objective.at(self.moment).settle(self.memory, observed)
        return answers if once else None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = None if norm is None else float(norm)
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values


class _Restore(TrainerCallback):
    """Puts a snapshot in place once Trainer has made optimizer and schedule."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._resumed is not None:
            self.trainer._load()


class _Log(TrainerCallback):
    """Hands the window's means over every `logging_steps` steps and at the last one."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        t, step = self.trainer, int(state.global_step)
        if t.moving is not None:
            t.moving.after_step(step, t.policy)
        if step % t.logging_steps and step != t.schedule.total_steps:
            return
        row = t.window.means(t.reduce_sum)
        row["train/grad_norm"] = t.grad_norm if t.grad_norm is not None else float("nan")
        row["train/learning_rate"] = t.used_learning_rate
        row["train/epoch"] = t.schedule.epoch(step)
        row |= t.objective.readings(t.used_moment)
        t.on_log(step, row)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.used_learning_rate = float(self.trainer.optimizer.param_groups[0]["lr"])


def _as_is(item: StepBatch) -> StepBatch:
    return item


def _take(iterator: Any, count: int) -> Any:
    for _ in range(count):
        try:
            yield next(iterator)
        except StopIteration:
            return


def check_optimizer(args: TrainingArguments) -> None:
    """Find out before any work whether the optimizer's package is there.

    Raises:
        UsageError: it is not, or the optimizer cannot be used here.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"trainer.optim={OptimizerNames(args.optim).value}: {first} (install what it needs, or take trainer.optim=adamw_torch)"
        ) from error


def training_arguments(cfg: TrainerConfig, schedule: DataOrder, output_dir: str, seed: int) -> TrainingArguments:
    """Trainer's arguments; accumulation is ours (see the module's head), and so are logging and checkpoints.

    Raises:
        UsageError: an optimizer that transformers does not know.
    """
    known = [str(name.value) for name in OptimizerNames]
    if cfg.optim not in known:
        raise UsageError(
            f"trainer.optim={cfg.optim}: no such optimizer{nearest(cfg.optim, known)} (choices: {', '.join(known)})"
        )
    warmup = cfg.warmup_steps or math.ceil(cfg.warmup_ratio * schedule.total_steps)  # as transformers
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=schedule.total_steps,
        per_device_train_batch_size=cfg.per_device_train_batch_size,
        gradient_accumulation_steps=1,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type=cfg.lr_scheduler_type,
        warmup_steps=warmup,
        weight_decay=cfg.weight_decay,
        adam_beta1=cfg.adam_beta1,
        adam_beta2=cfg.adam_beta2,
        adam_epsilon=cfg.adam_epsilon,
        max_grad_norm=cfg.max_grad_norm,
        optim=cfg.optim,
        bf16=cfg.bf16,
        gradient_checkpointing=cfg.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if cfg.gradient_checkpointing else None,
        use_cpu=cfg.use_cpu or not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        ignore_data_skip=True,  # the sampler starts at the resumed step itself
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )

"""What a run does after each optimizer step: log, measure, guard, save."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import say
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.objective import Objective
from alphapo_cli.runs.checkpoints import Checkpoints, TrainingCheckpoint
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Agreed, Processes
from alphapo_cli.runtime.signals import StopRequest
from alphapo_cli.runtime.wording import size
from alphapo_cli.stages.training.before_after import BeforeAndAfter
from alphapo_cli.stages.training.best_model import BestModel
from alphapo_cli.stages.training.cost import Cost
from alphapo_cli.stages.training.final_model import FinalModel
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.stages.training.kept_models import KeptModels
from alphapo_cli.stages.training.measurements import Measurements
from alphapo_cli.stages.training.metrics_log import MetricsLog
from alphapo_cli.stages.training.storing import store
from alphapo_cli.stages.training.tracker import Group
from alphapo_cli.storage.atomic import jsonable
from alphapo_cli.storage.jsonl import append_jsonl
from alphapo_cli.storage.run_lock import RunLock
from alphapo_cli.training import guards
from alphapo_cli.training.data_order import DataOrder, probe_every
from alphapo_cli.training.guards import Ending
from alphapo_cli.training.trainer import PreferenceTrainer, StepHooks
from alphapo_cli.training.training_state import Shards


class RunSteps(StepHooks):
    """The state of a training session, and its hooks.

    `lock` and `metrics_log` are None in all processes but rank 0. `measurements` and `trainer` are None until they are
    made from the policy before its first step.
    """

    def __init__(
        self, cfg: TrainConfig, directory: RunDirectory, builder: InputsBuilder, processes: Processes,
        objective: Objective, start: ModelAndData, group: Group | None, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.cfg, self.directory, self.builder, self.processes = cfg, directory, builder, processes
        self.objective, self.start, self.group, self.stop = objective, start, group, stop
        self.main = processes.rank == 0
        self.cost = Cost()
        train = start.data.train
        order = DataOrder.of(cfg.trainer, len(train), processes.steps_of, cfg.seed, train.columns.get("stage"))
        self.order = order.divided(processes.world) if processes.divided else order
        self.checkpoints = Checkpoints(directory.checkpoints, cfg.trainer.save_total_limit)
        self.kept = KeptModels.of(cfg, directory, self.order.total_steps)
        every = probe_every(cfg.probe.every, len(start.data.probe), self.order.pairs_per_step)
        self.best = BestModel(cfg, directory, frozenset(step for step in self.kept.steps if step % every))
        self.best_metrics: dict[str, Any] | None = None  # of the step that model/ is of, where that is not the last
        self.final_model = FinalModel(cfg, directory, start, self._log)
        self.lock: RunLock | None = None
        self.metrics_log: MetricsLog | None = None
        self.measurements: Measurements | None = None
        self.trainer: PreferenceTrainer | None = None
        self.texts: BeforeAndAfter | None = None
        self.ending: Ending | None = None
        self.full: str | None = None  # what the system said of a disk on which the room held for the model was needed
        self.start_step = 0  # the optimizer step from which this session trains

    # Hooks of the trainer, in the order in which it calls them after a step.

    def log(self, step: int, row: dict[str, float]) -> None:
        """Log training metrics of the step."""
        if self.metrics_log is not None:
            self.metrics_log.add(step, row)

    def measure(self, step: int) -> dict[str, Any]:
        """Measure the probe and sample answers where due, and write the step's row; the metrics measured."""
        last = self._last(step)
        probe, samples = (False, False) if self.measurements is None else self.measurements.due(step, last)
        # A step whose model is kept is measured, too, but steers nothing: neither schedules nor the best step.
        aside = step in self.kept.steps and not probe and self.measurements is not None
        row = (
            self._measure(step, probe=probe or aside, samples=samples, steers=not aside)
            if probe or samples or aside
            else {}
        )
        self.best.add(step, row, self.processes)
        self._flush(step)
        return row

    def guard(self, step: int, row: Mapping[str, Any]) -> bool:
        """Whether to stop after the step: a guard's limit is exceeded, or a signal has requested it."""
        reason = guards.crossed(self.cfg.guard, row, step) if self.main else None
        if reason is None and not self._last(step):
            reason = self.best.exhausted()
        ending = None
        if reason is not None:
            ending = Ending("stopped", reason)
        elif self.stop.asked and not self._last(step):
            ending = Ending("interrupted", "stopped by the user")
        elif self.full is not None and not self._last(step):
            kept = f"what was trained is kept in {self.checkpoints.folder}"
            ending = Ending("failed", f"{self.full} at step {step}: {kept}; make room, then type the same line")
        # All processes must make the same decision at the same step.
        self.ending = next((e for e in self.processes.gather([ending]) if e is not None), None)
        return self.ending is not None

    def save(self, step: int, *, stopping: bool) -> None:
        """Keep the model or the weights of the best step so far, where due, and a checkpoint where due or `stopping`."""
        due = step % self.cfg.trainer.save_steps == 0 and not self._last(step)
        if self.trainer is None:
            return
        if step in self.kept.steps:
            self._keep_model(self.trainer.policy, step)
        if self.best.due(step):
            self._keep_best(self.trainer, step)
        if not (stopping or due):
            return
        # Recorded in the checkpoint, so that a stopped run which is killed from here on does not train further.
        stopped = self.ending.reason if self.ending is not None and self.ending.state == "stopped" else None
        last_probe = {} if self.metrics_log is None else jsonable(self.metrics_log.last_probe)
        state = self.trainer.checkpoint(
            self.processes, cost=self.cost.so_far(self._probe_seconds()), last_probe=last_probe, stopped=stopped
        )
        self._save(self.checkpoints, state)
        if self.lock is not None:
            self.best.tidy(saved=True)

    def _keep_model(self, policy: PolicyModel, step: int) -> None:
        """Save the model of a step as trainer.save_models_at asks."""
        self._check_lock()
        lock, folder = self.lock, self.kept.of_step(step)
        if lock is not None:
            self.final_model.give_back_one()
        if self.processes.together:
            self.final_model.save_together(policy, lock, self.processes, folder)
        elif lock is not None:
            self._write(lambda: self.final_model.save(policy, lock, folder))
        self._log(f"the model of step {step} is kept in {folder.parent.name}/{folder.name}/")

    def _keep_best(self, trainer: PreferenceTrainer, step: int) -> None:
        """Write the weights of a step that is the best so far."""
        first = not self.best.checkpoints.steps()
        last_probe = {} if self.metrics_log is None else jsonable(self.metrics_log.last_probe)
        self._save(self.best.checkpoints, trainer.last_checkpoint(step, cost={}, last_probe=last_probe))
        if self.lock is not None:
            self.best.tidy(saved=False)
        if first and self.main:
            bytes_kept = sum(file.stat().st_size for file in self.best.checkpoints.folder.rglob("*") if file.is_file())
            self._log(
                f"the weights of the best step so far are kept in best/ until the end ({size(bytes_kept)} a step)"
            )

    def _save(self, checkpoints: Checkpoints, state: tuple[TrainingCheckpoint, Shards]) -> None:
        """Write a checkpoint, if need be into the room held for the model unless processes write it together."""
        self._check_lock()

        def write() -> None:
            store(checkpoints, state, self.directory.path, self.processes, self.lock)

        if self.processes.together:
            write()
        else:
            self._write(write)

    def _measure(self, step: int, *, probe: bool, samples: bool, steers: bool = True) -> dict[str, Any]:
        """Measure, and record the result as of `step`; its metrics. `steers`: whether parts of the objective see them."""
        trainer, measurements = self.trainer, self.measurements
        if trainer is None or measurements is None:
            return {}
        self._check_lock()
        if probe and step > 0:
            measurements.update_reference()
        row, per_pair = measurements.measure(step, probe=probe, samples=samples, context=trainer.context)
        if probe and step > 0 and steers:
            trainer.on_probe(row)
        if self.metrics_log is not None:
            self.metrics_log.add(step, row)
            self.metrics_log.last_probe = row if probe else {**self.metrics_log.last_probe, **row}
            self._check_lock()
            if per_pair:
                self._write(lambda: append_jsonl(self.directory.path / "probe.jsonl", *per_pair))
        return row

    def _last(self, step: int) -> bool:
        return step == self.order.total_steps

    def _flush(self, step: int) -> None:
        if self.metrics_log is not None:
            self._write(self.metrics_log.flush)
            self.metrics_log.advance(step)

    def _write(self, write: Callable[[], None]) -> None:
        """Write, if need be into the room held for the model; the run then stops after this step, while that suffices."""
        self.full = self.final_model.with_room(write) or self.full

    def _check_lock(self) -> None:
        """Check the run lock before a write; raises LockLost where another process has taken over."""
        if self.lock is not None:
            self.lock.check()

    def _log(self, text: str) -> None:
        if self.main:
            say(f"{self.directory.path.name}: {text}", file=sys.stderr, flush=True)

    def _step(self) -> int:
        return self.start_step if self.trainer is None else max(self.start_step, int(self.trainer.state.global_step))

    def _probe_seconds(self) -> float:
        return 0.0 if self.measurements is None else self.measurements.seconds

    def _keep_weights(self) -> str:
        """Write a checkpoint from which the model can be saved without training, unless there is one; what was done."""
        step, trainer = self._step(), self.trainer

        def missing() -> bool:
            return self.checkpoints.steps()[-1:] != [step]

        if trainer is not None and (self.processes.first(missing) if self.processes.together else missing()):
            last_probe = {} if self.metrics_log is None else jsonable(self.metrics_log.last_probe)
            last = trainer.last_checkpoint(step, cost=self.cost.so_far(self._probe_seconds()), last_probe=last_probe)
            try:
                store(self.checkpoints, last, self.directory.path, self.processes, self.lock)
            except (OSError, Agreed) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else error
                return f"nor could its weights be kept ({why}); an earlier checkpoint is as it was"
        return (
            f"its weights are kept in {self.checkpoints.folder}; the same line saves the model without training again"
        )

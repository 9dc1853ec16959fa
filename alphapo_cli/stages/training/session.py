"""One training session of a run, from acquiring the run lock to writing summary.json."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.errors import AlphapoError, Interrupted, in_words, say
from alphapo_cli.modeling.adapters import add_lora
from alphapo_cli.modeling.policy import PolicyModel, policy_of
from alphapo_cli.modeling.sharding import sharding_plan
from alphapo_cli.runs.checkpoints import TrainingCheckpoint
from alphapo_cli.runs.state import OVER
from alphapo_cli.runtime.distributed import Agreed, Processes
from alphapo_cli.stages.training.assembly import run_inputs
from alphapo_cli.stages.training.before_after import BeforeAndAfter
from alphapo_cli.stages.training.measurements import Measurements
from alphapo_cli.stages.training.metrics_log import MetricsLog
from alphapo_cli.stages.training.resume import Busy, begun_processes, check_continuable, facts_of
from alphapo_cli.stages.training.run_end import RunEnd, record_end
from alphapo_cli.stages.training.run_steps import RunSteps
from alphapo_cli.stages.training.sharded import check_model, check_trainer, loaded
from alphapo_cli.stages.training.tracker import run_tracker
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import json_line
from alphapo_cli.storage.owned_directory import remove_unfinished
from alphapo_cli.storage.run_lock import LockLost, LockStatus, acquire
from alphapo_cli.training import guards
from alphapo_cli.training.arguments import check_optimizer, training_arguments
from alphapo_cli.training.data_order import DataOrder, probe_every
from alphapo_cli.training.guards import Ending
from alphapo_cli.training.trainer import PreferenceTrainer
from alphapo_cli.training.training_state import put_back


class TrainingSession(RunSteps):
    """One training session of a run; a run that is interrupted and resumed has several."""

    def run(self, *, replace: bool) -> dict[str, Any]:
        """Train, from the last checkpoint if there is one.

        Args:
            replace: whether to discard the content of the directory.

        Returns:
            The content of summary.json.

        Raises:
            Busy: another process holds the run lock.
            UsageError: a model, the optimizer or an earlier checkpoint cannot be used; nothing was written.
            AlphapoError: training failed; summary.json has the reason.
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; summary.json has the reason.
        """
        if self.processes.together and not self.processes.divided and not replace:
            # It may go on with another number of processes, over the steps that it was begun with.
            begun = begun_processes(self.directory, self.processes)
            order = DataOrder.of(self.cfg.trainer, self.order.num_pairs, begun, self.cfg.seed, self.order.stages)
            self.order = dataclasses.replace(order, shared_by=self.processes.world)
        args = training_arguments(self.cfg.trainer, self.order, str(self.directory.path / "trainer"), self.cfg.seed)
        check_optimizer(args)
        policy = self._policy(args.device)  # before anything is written, because reading weights may fail
        try:
            summary, checkpoint = self.processes.first(lambda: self._open(replace, policy))
            if summary is not None:
                return summary
            self.best.share(self.processes)
            if self.processes.together:
                policy = policy.shard(sharding_plan(self.cfg.sharding, args.device, self.cfg.trainer.bf16))
            return self._train_recorded(policy, args, checkpoint)
        finally:
            if self.lock is not None and not self.lock.committed:
                self.final_model.release()
                self.lock.release()

    def _policy(self, device: torch.device) -> PolicyModel:
        """The model before its first step: on `device`, or on the CPU if it is yet to be sharded."""
        together = self.processes.together
        lm = loaded(self.processes, self.start.policy)
        if together:
            check_model(lm)
        self.final_model.prepare(lm)
        if self.cfg.model.lora.r is not None:
            lm = add_lora(lm, self.cfg.model, self.cfg.seed)
        return policy_of(lm if together else lm.to(device), self.cfg, device=device)

    def _open(self, replace: bool, policy: PolicyModel) -> tuple[dict[str, Any] | None, TrainingCheckpoint | None]:
        """Acquire the run lock and prepare the directory: (summary if the run is over, checkpoint to resume if any)."""
        lock = acquire(self.directory.lock)
        if isinstance(lock, LockStatus):
            raise Busy.of(self.directory, lock)
        self.lock = lock
        lock.settle(self.directory.summary_file)
        # Again, now under the lock, because it may have changed.
        state = self.directory.check(self.cfg, replace=replace, locked=True)
        if state in OVER:
            return self.directory.summary(), None
        manifest = facts_of(self.start, self.order.world, self.order.total_steps)
        if self.processes.divided:
            manifest["divided_among"] = self.processes.world
        begun = self.directory.read_manifest().get("generation", 1)  # older versions recorded none
        checkpoint = None if state == "pending" else self.checkpoints.load(begun if isinstance(begun, int) else 1)
        memoize = self.builder.before_training(self.cfg, policy)
        one = memoize("bytes of the model", lambda: self.final_model.try_saving(policy))
        begun_at = -1 if checkpoint is None else checkpoint.step
        self.final_model.reserve(one, 1 + sum(step > begun_at for step in self.kept.steps))
        if checkpoint is None:
            facts = {**manifest, "generation": lock.generation}
            self.directory.begin(self.cfg, facts, fingerprints(self.cfg.data))
        else:
            check_continuable(self.directory, manifest)
            begun_with = self._begun_with()
            if begun_with != self.processes.world:
                self._log(
                    f"note: begun with {begun_with} process(es), goes on with {self.processes.world}: results may "
                    "differ in round-off"
                )
            self.directory.go_back(checkpoint.step, checkpoint.record)
            self.best.go_back(self.directory.rows())
            self.kept.go_back(checkpoint.step, lock)
            self.start_step, self.cost.earlier = checkpoint.step, dict(checkpoint.cost)
        # Also where the run goes on: what became of the file meanwhile is not looked at.
        samples = [sample.as_json for sample in self.start.data.prompt_samples]
        write_json(self.directory.path / "prompts.json", samples)
        if self.start.data.dropped:
            lines = "".join(json_line(row) for row in self.start.data.dropped)
            write_atomic(self.directory.path / "dropped.jsonl", lines)
        self.checkpoints.tidy(lock)
        remove_unfinished(self.directory.model, lock)
        tracker = run_tracker(self.cfg, self.directory, self.group)
        self.metrics_log = MetricsLog(
            self.directory, self.order.total_steps, self.directory.path.name, tracker, self.lock, self.group is None
        )
        if checkpoint is not None:
            self.metrics_log.last_probe = dict(checkpoint.last_probe)
        return None, checkpoint

    def _begun_with(self) -> int:
        """How many processes began the run."""
        among = self.directory.read_manifest().get("divided_among")
        return among if isinstance(among, int) else self.order.world

    def _train_recorded(
        self, policy: PolicyModel, args: TrainingArguments, checkpoint: TrainingCheckpoint | None
    ) -> dict[str, Any]:
        """Train, and record in summary.json how training ended."""
        try:
            return self._train(policy, args, checkpoint)
        except LockLost:
            raise  # the process that has taken over writes summary.json
        except (KeyboardInterrupt, SystemExit, Interrupted) as error:  # SystemExit: a scheduler requeues the job
            with contextlib.suppress(OSError):  # on a full disk the run counts as interrupted all the same
                self._end("interrupted", "stopped by the user", 130)
            raise Interrupted(f"interrupted at step {self._step()}; the same line continues it") from error
        except BaseException as error:
            cause = self.processes.cause(error)
            # On a full disk summary.json cannot be written; the run counts as interrupted then.
            with contextlib.suppress(OSError):
                self._end("failed", in_words(cause), 1)
            if cause is not error:
                raise cause from error
            raise

    def _train(
        self, policy: PolicyModel, args: TrainingArguments, checkpoint: TrainingCheckpoint | None
    ) -> dict[str, Any]:
        """Train from step 0 or the checkpoint to the end; the content of summary.json."""
        with self.stop.at_once():
            trainer = self._prepare(policy, args)
            if checkpoint is None:
                row = self._measure(0, probe=True, samples=True)
                self._flush(0)
                self._sample_texts(policy, 0)
                if self.metrics_log is not None:
                    self.metrics_log.begin()
                self.processes.first(lambda: self.best.check_start(row))
            else:
                trainer.resume(checkpoint)
                over = "was trained already; its model is saved now" if self._over(checkpoint) else "continues"
                self._log(f"{over} at step {checkpoint.step} of {self.order.total_steps}")
        if checkpoint is not None and self._over(checkpoint):
            if checkpoint.stopped is not None:
                self.ending = Ending("stopped", checkpoint.stopped)
            put_back(checkpoint, policy)
        else:
            trainer.train()
        PartialState().wait_for_everyone()  # until then another process may read the directory
        with contextlib.suppress(OSError):
            (self.directory.path / "trainer").rmdir()
        if self.ending is not None and self.ending.state == "interrupted":
            raise Interrupted(self.ending.reason)
        if self.ending is not None and self.ending.state == "failed":
            raise AlphapoError(self.ending.reason)
        if self.cfg.guard.non_finite:
            guards.check_weights(policy.lm, self._step(), self.processes)
        summary = self._finish(policy) if self.main or self.processes.together else {}
        PartialState().wait_for_everyone()  # a process that exits while rank 0 saves would end the whole job
        return summary

    def _prepare(self, policy: PolicyModel, args: TrainingArguments) -> PreferenceTrainer:
        """Make the trainer and the measurements from the policy before its first step."""
        cfg, order = self.cfg, self.order
        inputs = run_inputs(cfg, self.builder, self.start, policy, self.objective, order.total_steps, self._log)
        self.trainer = PreferenceTrainer(
            inputs.training, order, args, self, logging_steps=cfg.trainer.logging_steps,
            check_finite=cfg.guard.non_finite,
        )  # fmt: skip
        check_trainer(self.trainer)
        self.measurements = Measurements(
            cfg, self.directory, inputs, self.processes,
            every=probe_every(cfg.probe.every, len(inputs.probe), order.pairs_per_step),
            memoize=self.builder.before_training(cfg, policy), write=self._write,
        )  # fmt: skip
        together = self.processes.together
        if self.main or together:
            memoize = self.builder.before_training(cfg, policy)
            self.texts = BeforeAndAfter.of(
                cfg, inputs, self.directory, memoize,
                write=self._write if self.main else None, log=self._log, together=together,
            )  # fmt: skip
        return self.trainer

    def _sample_texts(self, policy: PolicyModel, step: int) -> None:
        """Write answers of the policy for people to read, where that is to be done."""
        if self.texts is not None:
            self._check_lock()
            self.texts.sample(policy.lm, step)

    def _sample_last_texts(self, policy: PolicyModel) -> None:
        """`_sample_texts` of the saved model. They are to be read: a disk that refuses them costs no training."""
        if self.texts is None or self.texts.answers is None:
            return
        self._keep_weights()  # sampling takes minutes, in which the process may be killed
        step = self._step() if self.best_metrics is None or self.best.best is None else self.best.best.step
        try:
            self._sample_texts(policy, step)
        except OSError as error:
            self._log(f"note: the last answers could not be written ({error.strerror or error})")

    def _finish(self, policy: PolicyModel) -> dict[str, Any]:
        """Save the model, then record how the run ended. Where processes run it together, all of them take part."""
        self.best_metrics = self.best.load(policy, self.processes if self.processes.together else Processes())
        if self.best_metrics is not None and (best := self.best.best) is not None:
            self._log(
                f"model/ is that of step {best.step} of {self._step()}, the best by {best.metric} ({best.value:.4g})"
            )
        elif self.best.keeps:
            self._log(f"model/ is that of the last step: {self.best.metric} was a number at no step after 0")
        try:
            if self.processes.together:
                self.final_model.save_together(policy, self.lock, self.processes)
            elif self.lock is not None:
                self.final_model.save(policy, self.lock)
        except LockLost:
            raise
        except Exception as error:
            if self.processes.world > 1 and self.processes.together and not isinstance(error, Agreed):
                raise  # the other processes wait for this one where it failed: there is no writing together
            kept = self._keep_weights()
            raise AlphapoError(
                f"{self.directory.model}: the trained model could not be saved ({in_words(error)}); {kept}"
            ) from error
        self._sample_last_texts(policy)
        state, reason = ("complete", None) if self.ending is None else (self.ending.state, self.ending.reason)
        summary = self._end(state, reason, 0)
        if self.ending is None and self.lock is not None:
            self.checkpoints.remove(self.lock)
        if self.lock is not None:
            self.best.remove(self.lock)
        return summary

    def _over(self, checkpoint: TrainingCheckpoint) -> bool:
        """Whether all that is left after `checkpoint` is to save the model."""
        return checkpoint.stopped is not None or checkpoint.step == self.order.total_steps

    def _end(self, state: str, reason: str | None, code: int) -> dict[str, Any]:
        """Record how the run ended and give up the lock, once."""
        if self.metrics_log is None or self.lock is None or self.lock.committed:
            return {}
        self._check_lock()
        self.final_model.release()
        pairs = self.order.pairs_in(range(self.start_step, self._step()))
        end = RunEnd(
            state, reason, code, self._step(), self.cost.final(self._probe_seconds(), pairs, self.lock.generation),
            None if self.best_metrics is None else self.best.best, self.best_metrics,
        )  # fmt: skip
        summary = record_end(
            end, self.cfg, self.directory, self.metrics_log, self.lock, probe_pairs=len(self.start.data.probe),
            log=self._log,
        )  # fmt: skip
        hint = self.metrics_log.tracker.sync_hint()
        if hint and self.group is None:
            say(f"W&B kept offline; to upload: {hint}", file=sys.stderr)
        return summary

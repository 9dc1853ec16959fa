"""One attempt at one run: the parts wired together, from a claimed directory to its summary."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import Interrupted, in_words
from alphapo_cli.modeling.loading import add_lora, save_model
from alphapo_cli.modeling.policy import policy_of
from alphapo_cli.objective.objective import Objective
from alphapo_cli.runs.checkpoints import Checkpoints
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.signals import StopRequest, deferred_signals
from alphapo_cli.stages.training.cost import Cost
from alphapo_cli.stages.training.extra_models import guided, running_reference
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.stages.training.measurements import Measurements
from alphapo_cli.stages.training.metrics_log import MetricsLog
from alphapo_cli.stages.training.resume import Busy, check_continuable, facts_of
from alphapo_cli.stages.training.tracker import Group, run_tracker
from alphapo_cli.storage.atomic import jsonable, whole_directory, write_json
from alphapo_cli.storage.jsonl import append_jsonl
from alphapo_cli.storage.run_lock import LockLost, LockStatus, RunLock, acquire
from alphapo_cli.training import guards
from alphapo_cli.training.data_order import DataOrder, probe_every
from alphapo_cli.training.trainer import PreferenceTrainer, check_optimizer, training_arguments


@dataclass(frozen=True)
class _Ending:
    """Why training ended before its last step."""

    state: str  # stopped or interrupted
    reason: str


class TrainingSession:
    """One attempt at one run."""

    def __init__(
        self, cfg: TrainConfig, directory: RunDirectory, workshop: InputsBuilder, processes: Processes,
        objective: Objective, materials: ModelAndData, group: Group | None, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.cfg, self.directory, self.workshop, self.processes = cfg, directory, workshop, processes
        self.objective, self.materials, self.group, self.stop = objective, materials, group, stop
        self.main = processes.rank == 0
        self.cost = Cost()
        self.schedule = DataOrder.of(cfg.trainer, len(materials.data.train), processes.world, cfg.seed)
        self.checkpoints = Checkpoints(directory.checkpoints, cfg.trainer.save_total_limit)
        self.claim: RunLock | None = None
        self.recorder: MetricsLog | None = None
        self.readings: Measurements
        self.trainer: PreferenceTrainer | None = None
        self.ending: _Ending | None = None
        self.begun_at = 0  # the step where this attempt goes on

    def go(self, *, replace: bool) -> dict[str, Any]:
        """Run it, from its last checkpoint where it has one. Returns the content of summary.json.

        Raises:
            Busy: another process works on it.
        """
        lm = self.materials.policy()  # reading weights may still refuse; so before anything is written
        if self.cfg.model.lora.r is not None:
            lm = add_lora(lm, self.cfg.model, self.cfg.seed)
        folder = str(self.directory.path / "trainer")
        self.args = training_arguments(self.cfg.trainer, self.schedule, folder, self.cfg.seed)
        check_optimizer(self.args)
        self.policy = policy_of(lm.to(self.args.device), self.cfg)
        snapshot = None
        try:
            done, snapshot = self.processes.first(lambda: self._open(replace))
            if done is not None:
                return done
            return self._guarded(lm, snapshot)
        finally:
            if self.claim is not None:
                self.claim.release()

    def _open(self, replace: bool) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Claim the directory and bring it to where training goes on: (summary if over already, checkpoint or None)."""
        got = acquire(self.directory.claim)
        if isinstance(got, LockStatus):
            raise Busy.of(self.directory, got)
        self.claim = got
        state = self.directory.check(self.cfg, replace=replace)  # under the claim: it may have changed
        if state in ("complete", "stopped"):
            return self.directory.summary(), None
        facts = facts_of(self.materials, self.processes.world, self.schedule.total_steps)
        snapshot = None if state == "pending" else self.checkpoints.load()
        if snapshot is not None:
            check_continuable(self.directory, facts)
            self.cost.earlier = dict(snapshot["cost"])
        if snapshot is None:
            self.directory.begin(self.cfg, facts)
            write_json(self.directory.path / "prompts.json", self.materials.data.prompt_samples)
        else:
            self.directory.go_back(snapshot["step"])
        self.checkpoints.tidy()
        self.recorder = MetricsLog(
            self.directory,
            self.schedule.total_steps,
            self.directory.path.name,
            run_tracker(self.cfg, self.directory, self.group),
            self.claim,
        )
        if snapshot is not None:
            self.begun_at = snapshot["step"]
            self.recorder.last_probe = dict(snapshot.get("last_probe", {}))
        return None, snapshot

    def _guarded(self, lm: Any, snapshot: dict[str, Any] | None) -> dict[str, Any]:
        try:
            return self._train(lm, snapshot)
        except LockLost:
            raise  # whoever has taken over writes the record now
        except (KeyboardInterrupt, SystemExit, Interrupted) as error:  # SystemExit: a scheduler requeues the job
            self._end("interrupted", "stopped by the user", 130)
            raise Interrupted(f"interrupted at step {self._step()}; the same line continues it") from error
        except BaseException as error:
            with contextlib.suppress(
                OSError
            ):  # a full disk takes no summary either; the run counts as interrupted then
                self._end("failed", in_words(error), 1)
            raise

    def _train(self, lm: Any, snapshot: dict[str, Any] | None) -> dict[str, Any]:
        with self.stop.at_once():
            self._prepare(lm)
            assert self.trainer is not None
            if snapshot is None:
                self.measure(0, probe=True, samples=True)
                self._flush(0)
            else:
                self.trainer.restore(snapshot)
                self._say(f"continues at step {snapshot['step']} of {self.schedule.total_steps}")
        if snapshot is not None and "stopped" in snapshot:
            self.ending = _Ending("stopped", snapshot["stopped"])
            self.trainer.load_weights(snapshot["weights"])
        else:
            self.trainer.train()
        PartialState().wait_for_everyone()  # until then another process may look into the directory
        with contextlib.suppress(OSError):
            (self.directory.path / "trainer").rmdir()
        if self.ending is not None and self.ending.state == "interrupted":
            raise Interrupted(self.ending.reason)
        summary: dict[str, Any] = {}
        if self.main:
            if self.cfg.guard.non_finite:
                guards.check_weights(lm, self._step())
            self._mine()
            end_id = end_token_id(self.materials.tokenizer, self.cfg.data)
            # Whole or not at all: without its generation config it would load, and not stop where it should.
            with whole_directory(self.directory.model) as folder:
                save_model(lm, self.materials.tokenizer, folder, end_id=end_id, merge=self.cfg.model.merge)
            if self.ending is None:
                summary = self._end("complete", None, 0)
                self.checkpoints.remove()
            else:
                summary = self._end(self.ending.state, self.ending.reason, 0)
        PartialState().wait_for_everyone()  # a process that is gone while the first one saves ends the whole job
        return summary

    def _prepare(self, lm: Any) -> None:
        """Everything that needs the policy as it is before its first step."""
        cfg, policy = self.cfg, self.policy
        self.materials, guide = guided(cfg, self.materials, self.workshop, policy, self.objective)
        data, pad_id = self.materials.data, self.materials.tokenizer.pad_token_id
        reference = (
            self.workshop.reference(cfg, self.materials, policy, self.objective, guide)
            if self.objective.needs_reference
            else (None, None)
        )
        steps = self.schedule.total_steps
        moving = running_reference(cfg, self.workshop, policy, self.objective, steps, self._say)
        self.trainer = PreferenceTrainer(
            policy,
            self.objective,
            data.train,
            self.schedule,
            self.args,
            pad_id=pad_id,
            reference=reference[0],
            logging_steps=cfg.trainer.logging_steps,
            on_log=self._log,
            check_finite=cfg.guard.non_finite,
            moving=moving,
        )
        self.readings = Measurements(
            cfg, self.directory, self.materials, policy, self.objective, reference[1], self.processes,
            every=probe_every(cfg.probe.every, len(self.materials.data.probe), self.schedule.pairs_per_step),
            keep=self.workshop.before_training(cfg, policy),
        )  # fmt: skip
        self.trainer.add_callback(_AfterStep(self))

    def measure(self, step: int, *, probe: bool, samples: bool) -> dict[str, Any]:
        """One reading, recorded as of `step`."""
        assert self.trainer is not None
        self._mine()
        trainer = self.trainer
        if probe and step > 0 and trainer.moving is not None:
            self.readings.follow(trainer.moving.policy, trainer.objective)
        row, per_pair = self.readings.read(step, probe=probe, samples=samples, moment=trainer.moment)
        if probe and step > 0:
            trainer.memory = trainer.objective.react(trainer.memory, row)
        if self.recorder is not None:
            self.recorder.add(step, row)
            self.recorder.last_probe = row if probe else {**self.recorder.last_probe, **row}
            self._mine()
            if per_pair:
                append_jsonl(self.directory.path / "probe.jsonl", *per_pair)
        return row

    def after_step(self, step: int) -> bool:
        """Measure, record, save and look at the guards; True to stop here."""
        cfg, last = self.cfg, step == self.schedule.total_steps
        probe, samples = self.readings.due(step, last)
        row = self.measure(step, probe=probe, samples=samples) if probe or samples else {}
        assert self.trainer is not None
        row = {**row, "train/grad_norm": self.trainer.grad_norm}
        self._flush(step)
        reason = guards.crossed(cfg.guard, row, step) if self.main else None
        ending = None
        if reason is not None:
            ending = _Ending("stopped", reason)
        elif self.stop.asked and not last:
            ending = _Ending("interrupted", "stopped by the user")
        # Every process must come to the same decision at the same step.
        self.ending = next((e for e in self.processes.gather([ending]) if e is not None), None)
        if self.ending is not None or (step % cfg.trainer.save_steps == 0 and not last):
            self._save(step)
        return self.ending is not None

    def _save(self, step: int) -> None:
        assert self.trainer is not None
        state = self.trainer.snapshot(self.processes)
        if self.main and self.recorder is not None:
            self._mine()
            ours = {"cost": self.cost.so_far(self._probe_seconds()), "last_probe": jsonable(self.recorder.last_probe)}
            if self.ending is not None and self.ending.state == "stopped":  # killed from here on, it has stopped still
                ours["stopped"] = self.ending.reason
            self.checkpoints.save(step, {**state, "step": step, **ours})

    def _flush(self, step: int) -> None:
        if self.recorder is not None:
            self.recorder.flush()
            self.recorder.advance(step)

    def _mine(self) -> None:
        if self.claim is not None:
            self.claim.check()

    def _log(self, step: int, row: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.add(step, row)

    def _say(self, text: str) -> None:
        if self.main:
            print(f"{self.directory.path.name}: {text}", file=sys.stderr, flush=True)

    def _step(self) -> int:
        return self.begun_at if self.trainer is None else max(self.begun_at, int(self.trainer.state.global_step))

    def _probe_seconds(self) -> float:
        return self.readings.seconds if hasattr(self, "readings") else 0.0

    def _end(self, state: str, reason: str | None, code: int) -> dict[str, Any]:
        """Pictures, tracker, then summary.json, which makes the end known; a result that is on record stays."""
        if self.recorder is None or self.claim is None or self.claim.committed:
            return {}
        self._mine()
        self.recorder.close()
        metrics = dict(self.recorder.last_probe)
        if state != "interrupted":
            self._pictures()
        pairs = self.schedule.pairs_in(range(self.begun_at, self._step()))
        cost = self.cost.final(self._probe_seconds(), pairs, self.claim.generation)
        if state == "stopped":
            self.recorder.tracker.tag("stopped")
        self.recorder.tracker.finish({**metrics, "state": state, "reason": reason}, code)
        hint = self.recorder.tracker.sync_hint()
        if hint and self.group is None:
            print(f"W&B kept offline; to upload: {hint}", file=sys.stderr)
        with (
            deferred_signals(),
            self.claim.committing() if state in ("complete", "stopped") else contextlib.nullcontext(),
        ):
            return self.directory.finish(state, reason, self._step(), metrics, cost)

    def _pictures(self) -> None:
        if not self.cfg.tracking.pictures or self.recorder is None or not self.directory.rows():
            return
        from alphapo_cli.plots.figures import run_curves

        path = self.directory.path / "curves.png"
        try:
            run_curves(self.directory.rows(), path, self.directory.path.name)
        except OSError:
            raise
        except Exception as error:  # a picture is no reason to lose a run
            self._say(f"note: curves.png was not drawn ({in_words(error)})")
            return
        self.recorder.tracker.picture("curves", path, self._step())


class _AfterStep(TrainerCallback):
    """Calls the attempt at every optimizer-step boundary."""

    def __init__(self, attempt: TrainingSession) -> None:
        self.attempt = attempt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.attempt.after_step(int(state.global_step)):
            control.should_training_stop = True

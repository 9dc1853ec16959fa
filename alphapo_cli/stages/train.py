"""`alphapo train`: from a resolved configuration to a complete run directory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from alphapo_cli import diagnostics
from alphapo_cli.compose import leaves, to_dict
from alphapo_cli.data import glassbox
from alphapo_cli.data.prepare import tokenizer_hash
from alphapo_cli.data.tokenise import encode_prompt, end_token_id
from alphapo_cli.errors import AlphapoError, Interrupted, UsageError
from alphapo_cli.files import append_jsonl, write_json
from alphapo_cli.models import add_lora, save_model
from alphapo_cli.objective.preference import Objective, build
from alphapo_cli.outcome import GlassboxOutcome
from alphapo_cli.policy import policy_of
from alphapo_cli.probe import Probe, Processes
from alphapo_cli.runs import RunDirectory, digest, identity, manifest
from alphapo_cli.schedule import Schedule, probe_every
from alphapo_cli.schema import TrainConfig
from alphapo_cli.stages.base import threads
from alphapo_cli.stages.recorder import Recorder
from alphapo_cli.stages.workshop import Materials, Workshop
from alphapo_cli.tracking import open_tracker
from alphapo_cli.trainer import PreferenceTrainer, training_arguments


@dataclass(frozen=True)
class Group:
    """The sweep that a run belongs to, for W&B."""

    name: str
    job_type: str = "train"


def run(
    cfg: TrainConfig,
    directory: RunDirectory,
    *,
    replace: bool = False,
    workshop: Workshop | None = None,
    group: Group | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, unless the directory already holds the complete run. Returns the content of summary.json.

    Raises:
        UsageError: bad input; nothing was written.
        AlphapoError: training failed; the directory says so.
        Interrupted: Ctrl-C or SIGTERM; the directory says so.
    """
    if directory.claim(cfg, replace=replace) == "complete":
        summary = directory.summary()
        assert summary is not None
        return summary
    processes = start_processes(cfg)
    if not sys.stderr.isatty():
        disable_progress_bar()  # transformers' own bars for loading and saving
    workshop = workshop or Workshop(processes=processes)
    console = console or Console(stderr=True, quiet=processes.rank != 0)
    with threads(cfg.trainer.threads):
        objective = build(cfg.objective)
        with PartialState().main_process_first():
            materials = workshop.materials(cfg)
        console.print(data_table(materials))
        _warn(cfg, console)
        return _Run(cfg, directory, workshop, processes, objective, materials, group).go()


def start_processes(cfg: TrainConfig) -> Processes:
    """Join the other processes that torchrun started, if any."""
    state = PartialState(cpu=cfg.trainer.use_cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def leave_processes() -> None:
    """Take leave of the other processes, once nothing more will be asked of them."""
    PartialState().destroy_process_group()


def data_table(materials: Materials) -> Table:
    """What the data looks like, before anything is trained on it."""
    table = Table(title="data", show_header=False, title_justify="left")
    for label, value in materials.data.table:
        table.add_row(label, value)
    table.add_row("starts from", materials.start)
    return table


def _warn(cfg: TrainConfig, console: Console) -> None:
    if cfg.model.path is None and cfg.model.source == "from_scratch" and cfg.trainer.learning_rate < 1e-5:
        console.print(
            f"note: trainer.learning_rate={cfg.trainer.learning_rate} is a setting for large pretrained models; "
            "random weights will hardly move (trainer=small has 5e-4)", style="yellow",
        )  # fmt: skip


class _Run:
    """One attempt at one run: the parts wired together."""

    def __init__(
        self, cfg: TrainConfig, directory: RunDirectory, workshop: Workshop, processes: Processes,
        objective: Objective, materials: Materials, group: Group | None,
    ) -> None:  # fmt: skip
        self.cfg, self.directory, self.workshop, self.processes = cfg, directory, workshop, processes
        self.objective, self.materials, self.group = objective, materials, group
        self.main = processes.rank == 0
        self.started = time.time()
        self.probe_seconds = 0.0
        data = materials.data
        self.schedule = Schedule.of(cfg.trainer, len(data.train), processes.world, cfg.seed)
        self.every = probe_every(cfg.probe.every, len(data.probe), self.schedule.pairs_per_step)
        self.recorder: Recorder | None = None
        self.outcome: GlassboxOutcome | None = None

    def go(self) -> dict[str, Any]:
        lm = self.materials.policy()  # reading weights may still refuse; so before anything is written
        if self.cfg.model.lora.r is not None:
            lm = add_lora(lm, self.cfg.model, self.cfg.seed)
        folder = str(self.directory.path / "trainer")
        self.args = training_arguments(self.cfg.trainer, self.schedule, folder, self.cfg.seed)
        self.policy = policy_of(lm.to(self.args.device), self.cfg)
        if self.main:
            self.directory.begin(self.cfg, self._manifest())
            write_json(self.directory.path / "prompts.json", self.materials.data.prompt_samples)
            self.recorder = Recorder(
                self.directory, self.schedule.total_steps, self.directory.path.name, self._tracker()
            )
        try:
            summary = self._train(lm)
        except (KeyboardInterrupt, Interrupted) as error:
            self._end("interrupted", "stopped by the user", {}, 130)
            raise Interrupted(f"interrupted at step {self._step()}; the same line starts it again") from error
        except AlphapoError as error:
            self._end("failed", str(error), {}, 1)
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._end("failed", reason, {}, 1)
            raise
        return summary

    def _train(self, lm: Any) -> dict[str, Any]:
        cfg, data = self.cfg, self.materials.data
        pad_id = self.materials.tokenizer.pad_token_id
        policy = self.policy
        reference = (
            self.workshop.reference(cfg, self.materials, policy) if self.objective.needs_reference else (None, None)
        )
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
        )
        with self.trainer.compute_loss_context_manager():
            self.probe = Probe(
                policy, self.objective, data.probe, batch_size=cfg.probe.batch_size, pad_id=pad_id,
                processes=self.processes, reference=reference[1],
            )  # fmt: skip
        self._start_outcome(lm)
        self.trainer.add_callback(_ProbeCallback(self))
        self.measure(0)
        self.trainer.train()
        if not self.main:
            PartialState().wait_for_everyone()  # a process that is gone while the first one saves ends the whole job
            return {}
        with contextlib.suppress(OSError):
            (self.directory.path / "trainer").rmdir()
        end_id = end_token_id(self.materials.tokenizer, cfg.data)
        save_model(lm, self.materials.tokenizer, self.directory.model, end_id=end_id, merge=cfg.model.merge)
        summary = self._end("complete", None, self._metrics(), 0)
        PartialState().wait_for_everyone()
        return summary

    def _start_outcome(self, lm: Any) -> None:
        cfg = self.cfg
        if not (self.main and cfg.data.source == "glassbox" and cfg.probe.samples):
            return
        instructions = glassbox.instructions(cfg.probe.samples)
        tokenizer = self.materials.tokenizer
        prompts = [encode_prompt(({"role": "user", "content": i},), tokenizer, cfg.data) for i in instructions]
        self.outcome = GlassboxOutcome(
            tokenizer,
            cfg.probe,
            prompts,
            instructions,
            cfg.seed,
            self.directory.path / "samples",
            self.directory.path.name,
        )
        self.outcome.start(lm)

    def measure(self, step: int) -> None:
        """One reading of the probe (and of the embedded world's outcome), recorded as of `step`."""
        began = time.perf_counter()
        with self.trainer.compute_loss_context_manager():
            now = self.probe.measure(self.policy)
        row: dict[str, Any] = diagnostics.metrics(now, self.probe.start)
        every = self.cfg.probe.sample_every or self.every
        if self.outcome is not None and (step % every == 0 or step == self.schedule.total_steps):
            row.update(self.outcome.measure(self.policy.lm, step))
        if self.recorder is not None:
            self.recorder.add(step, row)
            self.recorder.last_probe = row
            for line in diagnostics.per_pair(now, self.probe.start, step):
                append_jsonl(self.directory.path / "probe.jsonl", line)
        self.probe_seconds += time.perf_counter() - began

    def _log(self, step: int, row: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.add(step, row)

    def _step(self) -> int:
        return int(self.trainer.state.global_step) if hasattr(self, "trainer") else 0

    def _metrics(self) -> dict[str, Any]:
        return dict(self.recorder.last_probe) if self.recorder else {}

    def _end(self, state: str, reason: str | None, metrics: dict[str, Any], code: int) -> dict[str, Any]:
        if not self.main or self.recorder is None:
            return {}
        self.recorder.close()
        if self.recorder.directory.rows():
            self._pictures()
        seconds = time.time() - self.started
        cost = {
            "seconds": round(seconds, 3),
            "probe_seconds": round(self.probe_seconds, 3),
            "pairs_per_second": round(self._step() * self.schedule.pairs_per_step / max(seconds, 1e-9), 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": os.uname().nodename,
        }
        summary = {"state": state, "reason": reason, "step": self._step(), "metrics": metrics}
        self.recorder.tracker.finish({**metrics, "state": state}, code)
        hint = self.recorder.tracker.sync_hint()
        if hint and self.group is None:
            print(f"W&B kept offline; to upload: {hint}", file=sys.stderr)
        return self.directory.finish(summary["state"], summary["reason"], summary["step"], metrics, cost)  # type: ignore[arg-type]

    def _pictures(self) -> None:
        if not self.cfg.tracking.pictures or self.recorder is None:
            return
        from alphapo_cli.plots import run_curves

        path = self.directory.path / "curves.png"
        run_curves(self.directory.rows(), path, self.directory.path.name)
        self.recorder.tracker.picture("curves", path, self._step())

    def _tracker(self) -> Any:
        settings = leaves(to_dict(self.cfg))
        return open_tracker(
            self.cfg.tracking,
            self.directory.path,
            run_id=digest([identity(self.cfg), str(self.directory.path)])[:16],
            name=self.directory.path.name,
            group=self.group.name if self.group else self.cfg.tracking.group,
            job_type=self.group.job_type if self.group else "train",
            config=settings,
        )

    def _manifest(self) -> dict[str, Any]:
        data, tokenizer = self.materials.data, self.materials.tokenizer
        return manifest(
            data={"key": data.key, **data.report},
            tokenizer=tokenizer_hash(tokenizer),
            template=digest(tokenizer.chat_template) if tokenizer.chat_template else None,
            start=self.materials.start,
            processes=self.processes.world,
        )


class _ProbeCallback(TrainerCallback):
    """Reads the probe every `probe.every` steps and at the last one; then the step's row is written."""

    def __init__(self, run: _Run) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = int(state.global_step)
        if step % self.run.every == 0 or step == self.run.schedule.total_steps:
            self.run.measure(step)
        if self.run.recorder is not None:
            self.run.recorder.flush()
            self.run.recorder.advance(step)


__all__ = ["Group", "UsageError", "run"]

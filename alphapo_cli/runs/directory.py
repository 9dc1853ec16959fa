"""A run is a directory: its identity, its state, and the files that make it traceable.

config.yaml     resolved configuration
manifest.json   format and numerics (see identity), command, versions, git commit, hashes, hardware
metrics.jsonl   the record; W&B mirrors it
probe.jsonl     per pair
dropped.jsonl   with data.select: the training pairs that it left out
samples/        answers, AlpacaEval format
curves.png
reward_shape.json, .png   the shape h(s), its slope, scores and gradient weights of the probe's answers, the loss's field
report.html     the same and more for a browser, with answers before and after
.claim/         run lock: the process that trains (see storage/run_lock)
outcome.json    results of generation and evaluation by `alphapo run`
checkpoints/    from which an interrupted run resumes
best/           with trainer.load_best_model_at_end, while the run lasts: the weights of the best step so far
model/          loads in plain transformers and vLLM
models/step-N/  with trainer.save_models_at: such a one of an earlier step
summary.json    {"state", "reason", "step", "metrics", "cost", "data", "verdict", "files"}; a run is complete only
                when it says so, and whole when its files are as "files" has them: size and SHA-256
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.errors import UsageError
from alphapo_cli.runs import format_version, identity, step_record
from alphapo_cli.runs.state import MODELS, OUTCOME, OVER, RunState
from alphapo_cli.runs.verdict import Verdict
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import UNBEGUN, check_folder, usable, write_atomic, write_json
from alphapo_cli.storage.committed_file import committed
from alphapo_cli.storage.run_lock import RunLock, acquire
from alphapo_cli.storage.strict_json import parsed_object

# What a run writes; `begin` removes these and nothing else. The run lock stays.
# config.yaml first: without it, no run resumes from what a kill during the removal leaves.
FILES = ("config.yaml", "summary.json", "metrics.jsonl", "probe.jsonl", "prompts.json", "dropped.jsonl", "curves.png", "reward_shape.json", "reward_shape.png", "report.html",
         "outcome_over_training.png", "samples", "model", MODELS, "checkpoints", "best", "trainer", "wandb", OUTCOME, "manifest.json")  # fmt: skip
# The results of a run that is over; summary.json has their checksums. Those of config.yaml and manifest.json, which tell
# of time and place, would make summaries of equal runs differ.
RESULTS = ("metrics.jsonl", "probe.jsonl", "prompts.json", "dropped.jsonl", "samples", "model", MODELS)


@dataclass(frozen=True)
class RunDirectory(RunState):
    """A run's directory, as the training session reads and writes it."""

    @property
    def is_run(self) -> bool:
        """Whether `begin` made this directory; no other directory is ever emptied."""
        return self.read_manifest().get("made_by") == "alphapo"

    @property
    def model(self) -> Path:
        """Folder of the trained model, for `from_pretrained`."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def rows(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl.

        Returns:
            Its rows; none if there is no such file.

        Raises:
            AlphapoError: a line is no JSON object with a step.
            UsageError: the run is over, and the file is not as it was written.
        """
        if not self.metrics.is_file():
            return []
        checksums.check_beside(self.metrics)
        return step_record.rows(self.metrics)

    def settings(self) -> dict[str, Any]:
        """Settings in config.yaml that decide the run's results; empty if the file cannot be read."""
        return identity.stored_settings(self.config)

    def differing(self, cfg: Any) -> dict[str, tuple[Any, Any]]:
        """Settings in which config.yaml differs from `cfg`, as key -> (value in config.yaml, value in `cfg`)."""
        return identity.differing(identity.read_settings(self.config), identity.settings(cfg))

    def numerics_note(self, anew: str = "--replace trains it anew") -> str | None:
        """Note that this version computes other results than the one that made the run.

        Args:
            anew: what the user can do, the end of the note.

        Returns:
            One line, or None if both compute the same.
        """
        changes = format_version.numerics_changes(format_version.numerics_of(self.read_manifest()))
        return f"made under {changes}; {anew}" if changes else None

    def changed_data(self, now: Mapping[str, str]) -> list[str]:
        """Find data files whose content has changed since the run was made.

        Args:
            now: hashes of the data files by setting, see `file_hashes.fingerprints`.

        Returns:
            Their settings (data.path, data.eval_path). Missing files and data from the hub are not compared.
        """
        recorded = self.manifest_section("files")
        return [setting for setting, was in recorded.items() if now.get(setting, was) != was]

    def check(self, cfg: Any, *, replace: bool, anew: str = "start over with --replace", locked: bool = False) -> str:
        """Check that this directory may be used for `cfg`; creates nothing.

        Args:
            cfg: the run's configuration.
            replace: whether the run is to be trained from step 0, whatever the directory holds of it.
            anew: how the user can train it from step 0, for the messages.
            locked: whether this process holds the run lock, so that a run that says "running" is an interrupted one.

        Returns:
            The run's state, as `RunState.state` has it.

        Raises:
            UsageError: the directory holds another configuration, something that is not a run, or a run that this
                version cannot resume; or the directory cannot be written.
        """
        fix = "choose another run.dir or run.name"
        with usable(self.path, fix):
            state = self._check(cfg, replace, anew, locked)
        if state != "complete":
            check_folder(self.path, fix)
        return state

    def _check(self, cfg: Any, replace: bool, anew: str, locked: bool) -> str:
        if self._is_empty():
            return "pending"
        if not replace and self.manifest.is_file() and not self.read_manifest():
            raise UsageError(f"{self.manifest} is damaged; put it back from a copy, or choose another run.name")
        if not self.is_run:
            raise UsageError(f"{self.path} exists and is not a run directory; choose another run.name or move it away")
        format_version.check_format(self.path, self.read_manifest(), replace=replace)
        if replace:
            return "pending"
        if not self.config.is_file():
            ended = self.summary()
            if self.summary_file.is_file() and (ended is None or ended.get("state") in OVER):
                raise UsageError(
                    f"{self.config} is missing, so nobody knows of which run the results are; put it back from a copy, or "
                    f"{anew}"
                )
            return "pending"
        differences = self.differing(cfg)
        if differences:
            typed = identity.to_type(differences)
            raise UsageError(
                f"{self.path} holds a run with another configuration (differs in: {identity.describe(differences)}); "
                f"{f'type {typed} to mean that one, ' if typed else ''}choose another run.name, or {anew}"
            )
        changed = self.changed_config()
        if changed is not None:
            raise UsageError(f"{self.config} is damaged ({changed}); put it back from a copy, or {anew}")
        summary = None
        with contextlib.suppress(FileNotFoundError):
            # Read once: one that cannot be read just now may say "complete", and so may one that is damaged.
            summary = checksums.intact(parsed_object(self.summary_content()))
            if summary is None:
                raise UsageError(
                    f"{self.summary_file} is damaged, and may have said that the run is complete; restore it, remove it to "
                    f"go on from the last checkpoint, or {anew}"
                )
        state = self.state_of(summary)
        if state in OVER:
            damage = self.damage()
            if damage:
                raise UsageError(
                    f"{self.path} says that it is {state}, but {checksums.described(damage)}; restore it from a copy, or "
                    f"{anew}"
                )
        if locked and state == "running":
            state = "interrupted"
        if state not in (*OVER, "running") and any(self.checkpoints.glob("step-*/complete")):
            note = self.numerics_note(f"going on would mix the two; {anew}")
            if note:
                raise UsageError(f"{self.path} was interrupted and {note}")
        return state

    def _is_empty(self) -> bool:
        """Whether the directory holds nothing but a run lock and temporary files of a killed process."""
        if not self.path.is_dir():
            return True
        return all(e == self.lock or e.name.startswith(UNBEGUN) for e in self.path.iterdir())

    def begin(self, cfg: Any, manifest: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Start at step 0: remove the files of an earlier session, write configuration, manifest and summary.

        Args:
            cfg: the run's configuration.
            manifest: as `manifest` returns it; format and numerics are added.
            files: hashes of the data files by setting, for `changed_data`.

        Raises:
            UsageError: the directory holds something that is not a run.
        """
        if not self._is_empty() and not self.is_run:
            raise UsageError(f"{self.path} is not a run directory, so nothing in it is removed")
        for name in FILES:  # what a run writes, and nothing else
            entry = self.path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        numbers = {"format": format_version.RUN_FORMAT, "numerics": max(format_version.NUMERICS)}
        config = to_yaml(cfg)
        facts = {**manifest, **numbers, "files": dict(files)}
        write_json(
            self.manifest, checksums.sealed({**facts, "checksums": {self.config.name: checksums.of_text(config)}})
        )
        write_atomic(self.config, config)
        self.finish("running", None, 0, {}, {})

    def go_back(self, step: int, record: Mapping[str, Any]) -> None:
        """Remove what was recorded after `step`, at which the run resumes.

        Args:
            step: the checkpoint's step.
            record: the checkpoint's `record`; empty where it is of a version that made none.

        Raises:
            UsageError: rows up to `step` are missing or have changed; nothing was removed.
        """
        step_record.cut(self.path, step, record)
        for file in (self.path / "samples").glob("step-*.json"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
        self.finish("running", None, step, {}, {})

    def finish(self, state: str, reason: str | None, step: int, metrics: dict[str, Any], cost: dict[str, Any]) -> None:
        """Write summary.json of a run that goes on or has failed; for the arguments see `ending`."""
        write_json(self.summary_file, self.ending(state, reason, step, metrics, cost))

    def ending(
        self, state: str, reason: str | None, step: int, metrics: dict[str, Any], cost: dict[str, Any],
        verdict: Verdict | None = None, best: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Make the content of summary.json, the last file that a run writes; `data` is the manifest's.

        Args:
            state: how the run ended.
            reason: why, unless it is complete.
            step: optimizer steps done.
            metrics: of the step that model/ is of.
            cost: seconds and the like.
            verdict: the judgement on a run that is over.
            best: the reading of trainer.metric_for_best_model by which model/ was chosen, if it was.

        Returns:
            The content, with its checksum.
        """
        data = self.manifest_section("data")
        summary = {"state": state, "reason": reason, "step": step, "metrics": metrics, "cost": cost, "data": data}
        if verdict is not None:
            summary["verdict"] = verdict.as_json
        if best is not None:
            summary["best"] = dict(best)
        if state in OVER:
            summary["files"] = checksums.of_files(self.path, RESULTS)
        return checksums.sealed(summary)

    def tidy(self) -> None:
        """Of a run that is over, remove what a process that was killed right after its commit had no time to remove.

        Those are checkpoints and weights of the best step; summary.json gets its name. Nothing happens where nothing is
        left, another process works on the run, or the disk refuses.
        """
        state = self.state
        if state not in OVER:
            return
        leftover = [self.path / "best", *([self.checkpoints] if state == "complete" else [])]
        if not (any(path.exists() for path in leftover) or committed(self.lock, self.summary_file)):
            return
        with contextlib.suppress(OSError):
            lock = acquire(self.lock)
            if not isinstance(lock, RunLock):
                return
            try:
                lock.settle(self.summary_file)
                if self.state in OVER:  # still, now that no other process begins it anew
                    for path in leftover:
                        shutil.rmtree(path, ignore_errors=True)
            finally:
                lock.release()

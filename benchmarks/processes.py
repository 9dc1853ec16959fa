"""Measurements that need a process of their own: clocks and memory of a child, and the rate of a matrix product."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Cost:
    """What a process took, its children included."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def environment(threads: int, cache: Path | None = None) -> dict[str, str]:
    """For children: this repository's package, so many threads, no network; `cache` instead of alphapo's own, if given."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ, **({"ALPHAPO_CACHE": str(cache)} if cache else {}), "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip


def timed(
    command: list[str], threads: int, cwd: Path | None = None, log: Path | None = None, cache: Path | None = None
) -> Cost:
    """Run a command to its end. `cache`: alphapo's, so that a run does not find what an earlier one has left.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    began = time.perf_counter()
    sink = open(log, "w") if log else subprocess.DEVNULL  # noqa: SIM115
    child = subprocess.Popen(command, cwd=cwd, env=environment(threads, cache), stdout=sink, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = log.read_text()[-2000:] if log else ""
        raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}\n{tail}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def ask(script: str, arguments: list[str], threads: int) -> dict[str, Any]:
    """Run a script of this directory in a process of its own; its last line is JSON.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments], env=environment(threads), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matmul_rate(
    dtype: torch.dtype, device: str = "cpu", rows: int = 1332, size: tuple[int, int] = (384, 1024), seconds: float = 0.5
) -> float:
    """Floating-point operations per second of a matrix product of the size that a layer has; the best of many.

    Per CPU-second on the CPU, per second of wall time on a CUDA device.
    """
    cuda = device == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    a, b = (torch.randn(n, size[0], device=device).to(dtype) for n in (rows, size[1]))
    out = torch.empty(rows, size[1], dtype=dtype, device=device)
    best, end = 0.0, clock() + seconds
    while clock() < end:
        began = clock()
        for _ in range(5):
            torch.mm(a, b.t(), out=out)
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * rows * size[0] * size[1] / (clock() - began))
    return best


def machine() -> str:
    """This machine and the versions that matter, in a line."""
    import platform

    import transformers

    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in known if line.startswith("model name")), "")
    found = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    try:
        import trl

        found.append(f"TRL {trl.__version__}")
    except ImportError:
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {capability}; {', '.join(found)}"

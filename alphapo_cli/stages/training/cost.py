"""Time and memory that a run takes, over all of its training sessions."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def forget_peak() -> None:
    """Let peak memory begin at what is in use now, where the system can: a process may have trained other runs before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_rss() -> int:
    """Most bytes that were resident since `forget_peak`; where the system does not say, since the process began."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Cost:
    """Seconds of this training session, added to those of earlier sessions of the run."""

    def __init__(self) -> None:
        self.started = time.time()
        self.earlier: Mapping[str, Any] = {"seconds": 0.0, "probe_seconds": 0.0, "attempts": 0}

    def so_far(self, probe_seconds: float) -> dict[str, Any]:
        """The cost so far, for a checkpoint.

        Args:
            probe_seconds: seconds of measurements in this session.

        Returns:
            Seconds, seconds of measurements, and number of sessions ("attempts"), over all sessions.
        """
        return {
            "seconds": round(self.earlier["seconds"] + time.time() - self.started, 3),
            "probe_seconds": round(self.earlier["probe_seconds"] + probe_seconds, 3),
            "attempts": self.earlier["attempts"] + 1,
        }

    def final(self, probe_seconds: float, pairs: int, generation: int) -> dict[str, Any]:
        """The cost at the end of the run, for summary.json.

        Args:
            probe_seconds: seconds of measurements in this session.
            pairs: pairs trained on in this session.
            generation: generation of the run lock.

        Returns:
            The content of `so_far`, pairs per second of this session, peak memory in MiB, and where and when it ended.
        """
        seconds = max(time.time() - self.started, 1e-9)
        return {
            **self.so_far(probe_seconds),
            "pairs_per_second": round(pairs / seconds, 2),
            "peak_rss_mib": peak_rss() >> 20,
            "peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None,
            "generation": generation,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": os.uname().nodename,
        }

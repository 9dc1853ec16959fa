"""What a run takes, over all attempts at it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch


class Cost:
    """Seconds since this attempt began, on top of what the attempts before it took."""

    def __init__(self) -> None:
        self.started = time.time()
        self.earlier: Mapping[str, Any] = {"seconds": 0.0, "probe_seconds": 0.0, "attempts": 0}

    def so_far(self, probe_seconds: float) -> dict[str, Any]:
        """For a checkpoint; `probe_seconds` are this attempt's."""
        return {
            "seconds": round(self.earlier["seconds"] + time.time() - self.started, 3),
            "probe_seconds": round(self.earlier["probe_seconds"] + probe_seconds, 3),
            "attempts": self.earlier["attempts"] + 1,
        }

    def final(self, probe_seconds: float, pairs: int, generation: int) -> dict[str, Any]:
        """For summary.json; `pairs`: trained on in this attempt."""
        seconds = max(time.time() - self.started, 1e-9)
        return {
            **self.so_far(probe_seconds),
            "pairs_per_second": round(pairs / seconds, 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None,
            "generation": generation,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": os.uname().nodename,
        }

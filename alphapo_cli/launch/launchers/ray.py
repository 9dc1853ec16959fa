"""`launcher=ray`: one Ray task per cell, on a running cluster or on one of this machine's own.

Ray keeps a worker process for the next task of the same kind, so what cells share stays in memory there.

A judge's key is not handed to Ray, whose arguments and logs others may read: on a running cluster it must be in the
environment under which Ray was started on every node. A cluster of this machine's own inherits it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError, first_line, missing_extra
from alphapo_cli.launch.cell import run_job
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.launch.launchers.local import LocalLauncher
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.stages.plan import Plan

PASSED_ON = ("ALPHAPO_CACHE", "WANDB_MODE", "HF_HUB_OFFLINE", "HF_HOME")  # none of them a secret
OBJECT_STORE = 100_000_000  # bytes; results travel through files


def run_with(job: CellJob, environment: dict[str, str]) -> Ended:
    """`run_job` under the environment in which the line was typed."""
    os.environ.update(environment)
    return run_job(job)


class RayLauncher:
    """See `Launcher`."""

    def __init__(self, cfg: LauncherConfig, logs: Path) -> None:
        """Raises UsageError where Ray is not installed or the cluster does not answer."""
        try:
            import ray
        except ImportError:
            raise missing_extra("ray", "ray") from None
        self.ray, self.logs = ray, logs
        self.at_once = cfg.workers
        self.queue: deque[CellJob] = deque()
        self.running: dict[Any, CellJob] = {}
        self.stopping = False
        # Not Ray's runtime_env, which needs ray[default] and an agent of its own.
        self.environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.environment["TQDM_DISABLE"] = "1"
        common = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        try:
            if cfg.address is not None:
                ray.init(address=cfg.address, **common)
            else:
                ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE, **common)
        except Exception as error:
            first = first_line(error)
            raise UsageError(f"launcher=ray: no cluster ({first}); check launcher.address") from error
        # A dead worker is the engine's to count; an exception of the task is part of its result.
        self.task = ray.remote(max_retries=0, num_cpus=cfg.cpus, num_gpus=cfg.gpus)(run_with)

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        checker = LocalLauncher(1, self.logs)
        try:
            checker.prepare(cells, plan)
        finally:
            checker.close()

    def start(self, jobs: Sequence[CellJob]) -> None:
        self.queue.extend(jobs)
        self._feed()

    def _feed(self) -> None:
        while self.queue and not self.stopping and (self.at_once is None or len(self.running) < self.at_once):
            job = self.queue.popleft()
            self.running[self.task.remote(job, self.environment)] = job

    def wait(self, seconds: float) -> list[Ended]:
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        ended = [self._result(task, self.running.pop(task)) for task in ready]
        self._feed()
        return ended

    def _result(self, task: Any, job: CellJob) -> Ended:
        errors = self.ray.exceptions
        try:
            result = self.ray.get(task)
        except errors.TaskCancelledError:
            return Ended(job, "interrupted", "cancelled")
        except errors.RayTaskError as error:
            return Ended(job, "failed", str(error).strip().splitlines()[-1])
        except errors.RayError as error:
            return Ended(job, "lost", f"the worker died ({type(error).__name__})")
        return result if isinstance(result, Ended) else Ended(job, "lost", "the task gave no result")

    def stop(self) -> None:
        self.stopping = True
        self.queue.clear()
        for task in self.running:
            self.ray.cancel(task, force=False)

    def under_way(self) -> list[CellJob]:
        return list(self.running.values())

    def close(self) -> None:
        self.ray.shutdown()

"""`launcher=slurm`: one task of a job array per cell, through submitit.

Whether a task is still there is asked of squeue, because sacct needs accounting, which small clusters go without; how
it ended is what its run directory says. A task that runs out of time or is preempted is requeued by submitit and goes
on from its checkpoint; one that was cancelled has saved a checkpoint and waits for the line to be typed again.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.launch.cell import run_job
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.launch.launchers.local import LocalLauncher
from alphapo_cli.launch.launchers.submission import make_executor
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.stages.plan import Plan

POLL = 2.0  # seconds between two questions to squeue
GRACE = 10.0  # seconds a task may be unknown to squeue before it counts as gone


class CellTask:
    """What a task runs. Its `checkpoint` is what submitit calls when a task is to be requeued."""

    def __call__(self, job: CellJob) -> Ended:
        return run_job(job)

    def checkpoint(self, job: CellJob) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class SlurmLauncher:
    """See `Launcher`."""

    def __init__(self, cfg: LauncherConfig, logs: Path) -> None:
        self.cfg, self.logs = cfg, logs
        self.executor = make_executor(cfg, logs)
        self.tasks: dict[str, tuple[Any, CellJob]] = {}  # "<array>_<index>" -> (submitit's job, ours)
        self.seen: dict[str, float] = {}  # when squeue last knew it
        self.asked = 0.0

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        checker = LocalLauncher(1, self.logs)
        try:
            checker.prepare(cells, plan)
        finally:
            checker.close()

    def start(self, jobs: Sequence[CellJob]) -> None:
        for task, job in zip(self.executor.map_array(CellTask(), jobs), jobs, strict=True):
            self.tasks[task.job_id] = (task, job)
            self.seen[task.job_id] = time.monotonic()

    def wait(self, seconds: float) -> list[Ended]:
        time.sleep(seconds)
        now = time.monotonic()
        if now - self.asked < POLL or not self.tasks:
            return []
        self.asked = now
        present = _in_queue(sorted({name.partition("_")[0] for name in self.tasks}))
        ended = []
        for name in list(self.tasks):
            if present is None or name in present:
                self.seen[name] = now
            task, job = self.tasks[name]
            result = _result(task)
            if result is None and now - self.seen[name] < GRACE:
                continue
            del self.tasks[name]
            ended.append(result or Ended(job, "lost", f"task {name} is gone without a result; see {task.paths.stderr}"))
        return ended

    def stop(self) -> None:
        """Cancelling sends SIGTERM, at which a run saves a checkpoint."""
        if self.tasks:
            subprocess.run(["scancel", *self.tasks], capture_output=True, check=False)

    def under_way(self) -> list[CellJob]:
        return [job for _, job in self.tasks.values()]

    def close(self) -> None:
        self.stop()


def _in_queue(arrays: Sequence[str]) -> set[str] | None:
    """Names of the tasks that Slurm still has, as submitit writes them; None where it does not answer."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%F_%K", "--jobs", ",".join(arrays)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode == 0:
        # submitit submits one cell alone without an array: its name is the job's number, and squeue has no index of it.
        return {name.removesuffix("_N/A") for name in asked.stdout.split()}
    # What has left the queue altogether is an invalid id to squeue.
    return set() if "Invalid job id" in asked.stderr else None


def _result(task: Any) -> Ended | None:
    """What the task handed back, where it has."""
    from submitit.core.utils import pickle_load

    if not task.paths.result_pickle.is_file():
        return None
    outcome, value = pickle_load(task.paths.result_pickle)
    if outcome == "success" and isinstance(value, Ended):
        return value
    return None

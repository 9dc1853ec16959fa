"""`launcher=slurm`: one task of a job array per cell, through submitit; of several nodes where a cell has them.

Whether a task is still queued or running is read from squeue, because sacct needs accounting, which small clusters do
not have; how it ended is read from its run directory. A task that runs out of time or is preempted is requeued by
submitit and resumes from its checkpoint; a cancelled one has saved a checkpoint, and the same command resumes it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.launch.cell import run_job
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.launch.launchers.local import LocalLauncher
from alphapo_cli.launch.launchers.submission import make_executor
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.stages.plan import Plan

if TYPE_CHECKING:
    from alphapo_cli.launch.torchrun import Node

POLL = 2.0  # seconds between two calls of squeue
FIRST_PORT, PORTS = 10_000, 20_000  # below those that Linux gives to connections that ask for none
GRACE = 10.0  # seconds a task may be unknown to squeue before it counts as gone


class CellTask:
    """The callable that a task runs on each of its nodes; submitit calls its `checkpoint` when it requeues the task."""

    def __call__(self, job: CellJob) -> Ended:
        """Run the cell; how it ended."""
        return run_job(job, _this_node() if job.processes.nodes > 1 else None)

    def checkpoint(self, job: CellJob) -> Any:
        """The submission that requeues the task with the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class SlurmLauncher:
    """A `Launcher` that runs each cell as a task of a Slurm job array.

    Args:
        cfg: the settings of `launcher.*`.
        logs: the sweep's folder of logs.

    Raises:
        UsageError: submitit is not installed, or there is no sbatch on this machine.
    """

    def __init__(self, cfg: LauncherConfig, logs: Path) -> None:
        self.cfg, self.logs = cfg, logs
        self.executor = make_executor(cfg, logs)
        self.tasks: dict[str, tuple[Any, CellJob]] = {}  # "<array>_<index>" -> (submitit's job, the cell's)
        self.seen: dict[str, float] = {}  # when squeue last listed the task, monotonic seconds
        self.polled = 0.0

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Check the cells in a worker process on this machine; see `Launcher`."""
        checker = LocalLauncher(1, self.logs)
        try:
            checker.prepare(cells, plan)
        finally:
            checker.close()

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Submit the jobs as one array."""
        for task, job in zip(self.executor.map_array(CellTask(), jobs), jobs, strict=True):
            self.tasks[task.job_id] = (task, job)
            self.seen[task.job_id] = time.monotonic()

    def wait(self, seconds: float) -> list[Ended]:
        """Sleep for `seconds`; the jobs that ended since the last call."""
        time.sleep(seconds)
        now = time.monotonic()
        if now - self.polled < POLL or not self.tasks:
            return []
        self.polled = now
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
        """Cancel all tasks, which sends SIGTERM: a run then saves a checkpoint."""
        if self.tasks:
            subprocess.run(["scancel", *self.tasks], capture_output=True, check=False)

    def under_way(self) -> list[CellJob]:
        """The jobs whose tasks are queued or running."""
        return [job for _, job in self.tasks.values()]

    def close(self) -> None:
        """Cancel all tasks."""
        self.stop()


def _this_node() -> Node:
    """The node of a task that has several. They meet on the first one, at a port that no other task of the cluster has."""
    from submitit import JobEnvironment

    from alphapo_cli.launch.torchrun import Node

    task = JobEnvironment()
    number = int(os.environ["SLURM_JOB_ID"])  # of an array each task has its own
    port = FIRST_PORT + number % PORTS
    again = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Node(task.node, f"{task.hostnames[0]}:{port}", f"alphapo-{number}-{again}")


def _in_queue(arrays: Sequence[str]) -> set[str] | None:
    """Names, as submitit writes them, of the tasks that are queued or running; None where squeue does not answer."""
    reply = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%F_%K", "--jobs", ",".join(arrays)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if reply.returncode == 0:
        # submitit submits a single cell without an array: its name is the job's number, and squeue has no index for it.
        return {name.removesuffix("_N/A") for name in reply.stdout.split()}
    # An array that has left the queue altogether is an invalid id to squeue.
    return set() if "Invalid job id" in reply.stderr else None


def _result(task: Any) -> Ended | None:
    """The result that the task has written; None where there is none."""
    from submitit.core.utils import pickle_load

    if not task.paths.result_pickle.is_file():
        return None
    outcome, value = pickle_load(task.paths.result_pickle)
    if outcome == "success" and isinstance(value, Ended):
        return value
    return None

"""`launcher=local`: long-lived worker processes on this machine, each assigned one of its GPUs, if any."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import AlphapoError
from alphapo_cli.launch.cell_order import together
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.launch.launchers.worker_process import Worker
from alphapo_cli.stages.plan import Plan

MAX_STARTUP_DEATHS = 3  # the sweep fails when so many workers have died before they were ready


class LocalLauncher:
    """A `Launcher` with worker processes; one that dies is replaced, and its job is reported as lost.

    Args:
        count: the number of workers.
        logs: the folder of the workers' logs.
        nproc: processes of a cell, each of which gets a GPU.
    """

    def __init__(self, count: int, logs: Path, nproc: int = 1) -> None:
        self.logs = logs
        found = gpus()
        self.gpus = [found[i : i + nproc] for i in range(0, len(found) - nproc + 1, nproc)]
        self.queue: deque[CellJob] = deque()
        self.workers: dict[Connection, Worker] = {}
        self.stopping = False
        self.startup_deaths = 0  # workers that died before they were ready
        for number in range(count):
            self._add(number)

    def _add(self, number: int) -> None:
        mine = ",".join(self.gpus[number % len(self.gpus)]) if self.gpus else None
        worker = Worker(number, self.logs / f"worker-{number}.log", mine)
        self.workers[worker.connection] = worker

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Check the cells and fill the caches in the first worker; see `Launcher`.

        Raises:
            UsageError: a model, data or file of the cells or of the plan cannot be used.
            AlphapoError: the worker died at its start.
        """
        worker = next(iter(self.workers.values()))
        worker.connection.send(("prepare", (list(cells), plan)))
        try:
            greeting = worker.receive()
            if greeting != "ready":
                raise AlphapoError(f"a worker began with {greeting!r} and not with 'ready'; see {self.logs}")
            worker.ready = True
            problem = worker.receive()
        except EOFError:
            raise AlphapoError(f"a worker died at its start ({worker.how_it_died()}); see {self.logs}") from None
        if isinstance(problem, Exception):
            raise problem

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Queue jobs, those of the same model and data one after another, for idle workers."""
        self.queue.extend(together(jobs, lambda job: job.cfg))
        self._feed()

    def _feed(self) -> None:
        """Send queued jobs to idle workers."""
        for worker in self.workers.values():
            if worker.ready and worker.job is None and self.queue and not self.stopping:
                worker.job = self.queue.popleft()
                with contextlib.suppress(OSError):  # the worker has just died, which `wait` will report
                    worker.connection.send(("run", worker.job))

    def wait(self, seconds: float) -> list[Ended]:
        """See `Launcher`; sends queued jobs to workers that became idle.

        Returns:
            The jobs that ended.

        Raises:
            AlphapoError: workers die repeatedly before they are ready.
        """
        ended = []
        for connection in wait(list(self.workers), seconds):
            worker = self.workers[connection]  # type: ignore[index]
            try:
                message = worker.receive()
            except EOFError:
                ended += self._lost(worker)
                continue
            if isinstance(message, Ended):
                if message.state == "interrupted" and not self.stopping:  # the signal was sent to the worker alone
                    message = Ended(message.job, "lost", "the worker was told to stop")
                ended.append(message)
                worker.job = None
            worker.ready = True
        self._feed()
        return ended

    def _lost(self, worker: Worker) -> list[Ended]:
        """Replace a worker that died; its job, if it had one."""
        del self.workers[worker.connection]
        how = worker.how_it_died()
        worker.end()
        if not worker.ready:
            self.startup_deaths += 1
            if self.startup_deaths >= MAX_STARTUP_DEATHS:
                raise AlphapoError(f"worker processes die at their start ({how}); see {self.logs}")
        if not self.stopping:  # an idle one too: a cell that another process holds may have to run again
            self._add(worker.number)
        return [] if worker.job is None else [Ended(worker.job, "lost", f"the worker died ({how})")]

    def stop(self) -> None:
        """Drop the queued jobs and send SIGTERM to busy workers, whose runs then save a checkpoint."""
        self.stopping = True
        self.queue.clear()
        for worker in self.workers.values():
            if worker.job is not None:
                worker.process.terminate()

    def under_way(self) -> list[CellJob]:
        """The jobs of busy workers."""
        return [worker.job for worker in self.workers.values() if worker.job is not None]

    def close(self) -> None:
        """Kill all workers."""
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()


def gpus() -> list[str]:
    """The GPUs that cells may use, as CUDA_VISIBLE_DEVICES names them; found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(n) for n, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(wanted: int | None, cells: Sequence[TrainConfig], nproc: int = 1) -> int:
    """The number of workers.

    Args:
        wanted: `launcher.workers`; None: one per group of `nproc` GPUs, else as many as the cores have room for with the
            cells' largest trainer.threads in each process.
        cells: the cells' configurations.
        nproc: processes of a cell.

    Returns:
        Their number.
    """
    if wanted is not None:
        return wanted
    devices = 0 if all(cfg.trainer.use_cpu for cfg in cells) else len(gpus())
    if devices:
        return max(1, devices // nproc)
    here = cores()
    return max(1, here // (nproc * max(cfg.trainer.threads or max(1, here // nproc) for cfg in cells)))

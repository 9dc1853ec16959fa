"""`launcher=ray`: one Ray task per cell and node, on a running cluster or on a local one started here.

Ray reuses a worker process for the next task of the same kind, so model and data that cells share stay in its memory.

A judge's API key is not passed to Ray, whose arguments and logs others may read: on a running cluster it must be in the
environment under which Ray was started on every node. A local cluster inherits it.
"""

from __future__ import annotations

import os
import socket
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


def run_with(job: CellJob, environment: dict[str, str], number: int = 0, endpoint: str | None = None) -> Ended:
    """Call `run_job` with environment variables of the submitting process, on a node of several or on the only one."""
    os.environ.update(environment)
    if endpoint is None:
        return run_job(job)
    from alphapo_cli.launch.torchrun import Node

    return run_job(job, Node(number, endpoint, f"alphapo-{endpoint}"))


def free_endpoint() -> str:
    """Address of this node, and a port of it that is free now."""
    import ray

    with socket.socket() as found:
        found.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{found.getsockname()[1]}"


class RayLauncher:
    """A `Launcher` that runs each cell as a Ray task.

    Args:
        cfg: the settings of `launcher.*`.
        logs: the sweep's folder of logs.

    Raises:
        UsageError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, cfg: LauncherConfig, logs: Path) -> None:
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
        self.needs = {"CPU": max(cfg.cpus, cfg.nproc_per_node), "GPU": cfg.gpus}  # of a task
        for name, there in ray.cluster_resources().items() if cfg.address is None else ():
            if self.needs.get(name, 0) > there:  # it would wait for ever
                ray.shutdown()
                raise UsageError(
                    f"launcher=ray: a task needs {self.needs[name]} {name}s, and this machine has {there:g}"
                )
        # No retries: the engine counts workers that die, and an exception of the task is part of its result.
        self.task = ray.remote(max_retries=0, num_cpus=self.needs["CPU"], num_gpus=cfg.gpus)(run_with)
        self.groups: dict[Any, Any] = {}  # task of a cell's first node -> (placement group, tasks of the others)

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Check the cells in a worker process on this machine; see `Launcher`."""
        checker = LocalLauncher(1, self.logs)
        try:
            checker.prepare(cells, plan)
        finally:
            checker.close()

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Queue jobs and submit those that `launcher.workers` allows."""
        self.queue.extend(jobs)
        self._feed()

    def _feed(self) -> None:
        """Submit queued jobs, at most `launcher.workers` at a time."""
        while self.queue and not self.stopping and (self.at_once is None or len(self.running) < self.at_once):
            job = self.queue.popleft()
            if job.processes.world == 1:
                self.running[self.task.remote(job, self.environment)] = job
            else:
                self._place(job)

    def _place(self, job: CellJob) -> None:
        """Submit a cell of several processes: a placement group with a bundle for each node, and a task in each."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        nodes = job.processes.nodes
        bundle = {name: count for name, count in self.needs.items() if count}
        group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "STRICT_PACK")
        within = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(nodes)]
        endpoint = None
        if nodes > 1:
            endpoint = self.ray.remote(num_cpus=0)(free_endpoint).options(scheduling_strategy=within[0]).remote()
        first, *others = (
            self.task.options(scheduling_strategy=place).remote(job, self.environment, number, endpoint)
            for number, place in enumerate(within)
        )
        self.running[first] = job
        self.groups[first] = (group, others)

    def wait(self, seconds: float) -> list[Ended]:
        """See `Launcher`; submits queued jobs in place of those that ended."""
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        ended = [self._result(task, self.running.pop(task)) for task in ready]
        for task in ready:
            self._release(task)
        self._feed()
        return ended

    def _release(self, task: Any) -> None:
        """Give back the nodes of a cell that has ended on its first one."""
        from ray.util.placement_group import remove_placement_group

        if task in self.groups:
            remove_placement_group(self.groups.pop(task)[0])  # ends what still runs there

    def _result(self, task: Any, job: CellJob) -> Ended:
        """How a finished task ended."""
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
        """Drop the queued jobs and cancel the running tasks, which then save a checkpoint."""
        self.stopping = True
        self.queue.clear()
        for task in self.running:
            for one in (task, *self.groups.get(task, (None, ()))[1]):
                self.ray.cancel(one, force=False)

    def under_way(self) -> list[CellJob]:
        """The jobs whose tasks are submitted."""
        return list(self.running.values())

    def close(self) -> None:
        """Disconnect from the cluster, or end a local one."""
        self.ray.shutdown()

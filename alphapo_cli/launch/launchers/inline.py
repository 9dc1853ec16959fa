"""`launcher.workers=0`: cells one after another in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.launch.cell import prepare, run_job
from alphapo_cli.launch.cell_order import together
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.stages.plan import Plan


class InlineLauncher:
    """See `Launcher`; a cell runs inside `wait`."""

    def __init__(self) -> None:
        self.queue: deque[CellJob] = deque()

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        prepare(cells, plan)

    def start(self, jobs: Sequence[CellJob]) -> None:
        self.queue.extend(together(jobs, lambda job: job.cfg))

    def wait(self, seconds: float) -> list[Ended]:
        if not self.queue:
            return []
        ended = run_job(self.queue.popleft())
        if ended.state == "interrupted":  # the signal was this process's
            raise KeyboardInterrupt
        return [ended]

    def stop(self) -> None:
        self.queue.clear()

    def under_way(self) -> list[CellJob]:
        return []

    def close(self) -> None:
        self.queue.clear()

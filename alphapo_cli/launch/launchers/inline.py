"""`launcher.workers=0`: the cells run one after another in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.launch.cell import prepare, run_job
from alphapo_cli.launch.cell_order import together
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.stages.plan import Plan


class InlineLauncher:
    """A `Launcher` whose `wait` runs the next cell."""

    def __init__(self) -> None:
        self.queue: deque[CellJob] = deque()

    def prepare(self, cells: Sequence[TrainConfig], plan: Plan | None) -> None:
        """Check the cells and fill the caches in this process; see `Launcher`."""
        prepare(cells, plan)

    def start(self, jobs: Sequence[CellJob]) -> None:
        """Queue jobs, those of the same model and data one after another."""
        self.queue.extend(together(jobs, lambda job: job.cfg))

    def wait(self, seconds: float) -> list[Ended]:
        """Run the next job to its end; raises KeyboardInterrupt where a signal interrupted it."""
        if not self.queue:
            return []
        ended = run_job(self.queue.popleft())
        if ended.state == "interrupted":  # the signal was sent to this process
            raise KeyboardInterrupt
        return [ended]

    def stop(self) -> None:
        """Drop the queued jobs."""
        self.queue.clear()

    def under_way(self) -> list[CellJob]:
        """No job, because jobs run within `wait`."""
        return []

    def close(self) -> None:
        """Drop the queued jobs."""
        self.queue.clear()

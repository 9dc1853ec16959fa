"""The sweep engine: selects the cells to run and passes them to a launcher. The run directories are its only state.

A cell whose worker died is started again until that has happened `launcher.crashes` times; one that another process
holds is polled until that process has released it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alphapo_cli.errors import Interrupted
from alphapo_cli.launch.failure import mark_failed
from alphapo_cli.launch.launchers.launcher import CellJob, CellProcesses, Ended, Launcher
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OVER
from alphapo_cli.stages.plan import Plan
from alphapo_cli.storage.run_lock import lock_status
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell

LOOK = 0.5  # seconds between two polls of the cells that other processes hold
RECORD = 5.0  # minimum seconds between two writes of summary.json,
SPENT = 0.02  # and the largest share of the time that they may take, because workers wait meanwhile


@dataclass(frozen=True)
class Policy:
    """How a sweep treats failed cells."""

    retry: bool = True  # run cells that failed in an earlier invocation once more
    fail_fast: bool = False  # stop at the first failed cell
    crashes: int = 2  # a cell whose worker died this often has failed


def todo(cells: Sequence[Cell], directory: SweepDirectory, policy: Policy, plan: Plan | None = None) -> list[Cell]:
    """The cells to run: those that are not over or lack the plan's outcome; failed ones only under `policy.retry`."""
    left = (*OVER, *(() if policy.retry else ("failed",)))

    def is_left(cell: Cell) -> bool:
        run = directory.cell(cell.id)
        state = run.state
        if state in OVER and plan is not None:
            outcome = run.outcome()
            if outcome.get("failed") == plan.key and not policy.retry:
                return False
            return outcome.get("key") != plan.key
        return state not in left

    return [cell for cell in cells if is_left(cell)]


@dataclass
class SweepEngine:
    """One invocation of a sweep. It calls `tell` for every cell that ends in it, and `tick` several times a second."""

    directory: SweepDirectory
    launcher: Launcher
    policy: Policy
    tell: Callable[[Ended], None]
    tick: Callable[[], None]
    processes: CellProcesses = field(default_factory=CellProcesses)  # of each cell
    lost: Counter[str] = field(default_factory=Counter)  # cell -> how often its worker died
    busy: dict[str, CellJob] = field(default_factory=dict)  # cells that other processes hold
    ended: dict[str, Ended] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], plan: Plan | None = None) -> list[Ended]:
        """Run cells to their end.

        Args:
            cells: the cells.
            plan: generation and evaluation after training; None for none.

        Returns:
            How each one ended, in the order of `cells`; only those that have ended under `fail_fast`.

        Raises:
            Interrupted: Ctrl-C or SIGTERM. After the first signal the running cells have saved a checkpoint.
        """
        sweep, folder = str(self.directory.path.absolute()), os.getcwd()
        jobs = [
            CellJob(sweep, folder, cell.id, tuple(cell.overrides), cell.cfg, plan, self.processes) for cell in cells
        ]
        polled = time.monotonic()
        due = polled + RECORD
        try:
            self.launcher.start(jobs)
            while len(self.ended) < len(jobs):
                for ended in self.launcher.wait(0.2):
                    self._take(ended)
                now = time.monotonic()
                if now - polled > LOOK:
                    polled = now
                    self._look_again()
                if now > due:
                    self._note_progress()
                    took = time.monotonic() - now
                    due = now + max(RECORD, took / SPENT)
                self.tick()
                if self.policy.fail_fast and any(e.state == "failed" for e in self.ended.values()):
                    self._wind_down()
                    break
        except KeyboardInterrupt:
            self._wind_down()
            self._note_progress()
            done = sum(e.state in OVER for e in self.ended.values())
            raise Interrupted(
                f"interrupted; {done} of {len(jobs)} cells of this line done; the same line goes on"
            ) from None
        return [self.ended[job.id] for job in jobs if job.id in self.ended]

    def _note_progress(self) -> None:
        """Write summary.json of the unfinished sweep; a full disk must not stop the cells."""
        with contextlib.suppress(OSError):
            self.directory.write_summary(None)

    def _take(self, ended: Ended) -> None:
        """Record how a job ended, or start it again where its worker died."""
        job = ended.job
        if ended.state == "busy":
            self.busy[job.id] = job
            return
        if ended.state == "lost":
            state = self._run(job).state
            if state in OVER and self._judged(job):
                ended = Ended(job, state)
            else:
                self.lost[job.id] += 1
                if self.lost[job.id] < self.policy.crashes:
                    self.launcher.start([job])
                    return
                reason = f"{ended.reason}, {self.lost[job.id]} times; a smaller batch needs less memory"
                mark_failed(self._run(job), job, reason)
                ended = Ended(job, "failed", reason)
        self.ended[job.id] = ended
        self.tell(ended)

    def _look_again(self) -> None:
        """Poll the cells that other processes held: record those that are over, and start those that were released."""
        for job in list(self.busy.values()):
            held = lock_status(self._run(job).lock)
            if held is not None and held.held:
                continue  # its state may be that of an earlier session until the process has written its own
            state = self._run(job).state
            del self.busy[job.id]
            if state == "failed" or (state in OVER and self._judged(job)):
                self._take(Ended(job, state, (self._run(job).summary() or {}).get("reason")))
            else:
                self.launcher.start([job])

    def _wind_down(self) -> None:
        """Make running cells save a checkpoint and end; a second Ctrl-C ends them at once."""
        self.launcher.stop()
        try:
            while self.launcher.under_way():
                for ended in self.launcher.wait(0.2):
                    self.ended[ended.job.id] = ended
                    self.tell(ended)
                self.tick()
        except KeyboardInterrupt:
            self.launcher.close()

    def _judged(self, job: CellJob) -> bool:
        """Whether a trained cell has the outcome of the job's plan, or the job has no plan."""
        return job.plan is None or self._run(job).outcome().get("key") == job.plan.key

    def _run(self, job: CellJob) -> RunDirectory:
        return self.directory.cell(job.id)

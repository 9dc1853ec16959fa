"""The sweep engine: which cells are to be run, and what becomes of them. The run directories are the only state.

It hands jobs to a launcher and looks at how they end. A cell whose worker died is given out again, up to
`launcher.crashes` times; one that another process holds is looked at again until that process is done with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alphapo_cli.errors import Interrupted
from alphapo_cli.launch.launchers.launcher import CellJob, Ended, Launcher
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OVER
from alphapo_cli.stages.plan import Plan
from alphapo_cli.stages.train_generate_evaluate import note_failure
from alphapo_cli.storage.run_lock import RunLock, acquire, lock_status
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell

LOOK = 0.5  # seconds between two looks at a cell that another process holds
RECORD = 5.0  # seconds at least between two writings of summary.json,
SPENT = 0.02  # and of the time at most this share for them: workers wait meanwhile


@dataclass(frozen=True)
class Policy:
    """What to do with cells that failed."""

    retry: bool = True  # those that an earlier line left failed, once
    fail_fast: bool = False
    crashes: int = 2


def todo(cells: Sequence[Cell], directory: SweepDirectory, policy: Policy, plan: Plan | None = None) -> list[Cell]:
    """Cells that a line runs: all that are not over, without failed ones where they are not to be retried."""
    left = (*OVER, *(() if policy.retry else ("failed",)))

    def is_left(cell: Cell) -> bool:
        run = directory.cell(cell.id)
        state = run.state
        if state in OVER and plan is not None:
            found = run.outcome()
            if found.get("failed") == plan.key and not policy.retry:
                return False
            return found.get("key") != plan.key
        return state not in left

    return [cell for cell in cells if is_left(cell)]


@dataclass
class SweepEngine:
    """One invocation. `tell(ended)` hears of every cell that is over for this invocation, `tick()` several times a second."""

    directory: SweepDirectory
    launcher: Launcher
    policy: Policy
    tell: Callable[[Ended], None]
    tick: Callable[[], None]
    lost: Counter[str] = field(default_factory=Counter)
    busy: dict[str, CellJob] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], plan: Plan | None = None) -> list[Ended]:
        """Run `cells`; how each one ended.

        Raises:
            Interrupted: Ctrl-C or SIGTERM. After the first one, what runs has saved a checkpoint.
        """
        sweep, here = str(self.directory.path.absolute()), os.getcwd()
        jobs = [CellJob(sweep, here, cell.id, tuple(cell.overrides), cell.cfg, plan) for cell in cells]
        looked = time.monotonic()
        due = looked + RECORD
        try:
            self.launcher.start(jobs)
            while len(self.ended) < len(jobs):
                for ended in self.launcher.wait(0.2):
                    self._take(ended)
                now = time.monotonic()
                if now - looked > LOOK:
                    looked = now
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
        """summary.json of an unfinished sweep; on a full disk the cells go on without, each for as long as it has room."""
        with contextlib.suppress(OSError):
            self.directory.write_summary(None)

    def _take(self, ended: Ended) -> None:
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
        """Cells that other processes held: over by now, or free."""
        for job in list(self.busy.values()):
            held = lock_status(self._run(job).lock)
            if held is not None and held.held:
                continue  # until it has written its own first state, the one of an earlier attempt is there
            state = self._run(job).state
            del self.busy[job.id]
            if state == "failed" or (state in OVER and self._judged(job)):
                self._take(Ended(job, state, (self._run(job).summary() or {}).get("reason")))
            else:
                self.launcher.start([job])

    def _wind_down(self) -> None:
        """Let what runs save a checkpoint and end; a second Ctrl-C ends it at once."""
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
        """Whether a trained cell has the outcome that the line asks for, if it asks for any."""
        return job.plan is None or self._run(job).outcome().get("key") == job.plan.key

    def _run(self, job: CellJob) -> RunDirectory:
        return self.directory.cell(job.id)


def mark_failed(run: RunDirectory, job: CellJob, reason: str) -> None:
    """Write the end of a run whose process could not."""
    from alphapo_cli.runs.directory import manifest

    lock = acquire(run.lock)
    if not isinstance(lock, RunLock):
        return  # somebody else has it by now
    try:
        if run.state in OVER:  # what was trained stays
            if job.plan is not None and run.outcome().get("key") != job.plan.key:
                note_failure(job.plan, run, f"trained, but not evaluated: {reason}")
            return
        if run.state == "pending":
            run.begin(job.cfg, manifest(note="its worker died before training"))
        step = int((run.summary() or {}).get("step", 0))
        run.finish("failed", reason, step, {}, {})
    finally:
        lock.release()

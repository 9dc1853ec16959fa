"""What is recorded of a cell whose processes died, by the one that notices."""

from __future__ import annotations

from alphapo_cli.launch.launchers.launcher import CellJob
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OVER
from alphapo_cli.stages.train_generate_evaluate import begin_untrained, note_failure
from alphapo_cli.storage.run_lock import RunLock, acquire


def mark_failed(run: RunDirectory, job: CellJob, reason: str) -> None:
    """Record the failure of a run whose process died, unless another process has taken it over."""
    lock = acquire(run.lock)
    if not isinstance(lock, RunLock):
        return  # another process holds it
    try:
        lock.settle(run.summary_file)
        if run.state in OVER:  # the trained model is kept
            if job.plan is not None and run.outcome().get("key") != job.plan.key:
                note_failure(job.plan, run, f"trained, but not evaluated: {reason}")
            return
        if run.state == "pending":
            begin_untrained(job.cfg, run, "its worker died before training")
        step = int((run.summary() or {}).get("step", 0))
        run.finish("failed", reason, step, {}, {})
    finally:
        lock.release()

"""Running one cell of a sweep in the current process, which keeps model and data that cells share in memory."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import Interrupted, in_words, say
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.report.write import refresh_run
from alphapo_cli.runs.state import OVER
from alphapo_cli.stages.plan import Plan
from alphapo_cli.stages.train_generate_evaluate import (
    after_training,
    begin_untrained,
    join_tracking,
    make_reference,
    note_failure,
)
from alphapo_cli.storage.jsonl import InUse
from alphapo_cli.storage.run_lock import LockLost, RunLock, acquire
from alphapo_cli.sweep.directory import SweepDirectory

if TYPE_CHECKING:
    from alphapo_cli.stages.training.inputs import InputsBuilder


@functools.cache
def _builder() -> InputsBuilder:
    """The inputs builder of this process."""
    from alphapo_cli.stages.training.inputs import InputsBuilder

    return InputsBuilder(warm=True)


def prepare(cells: Sequence[TrainConfig], plan: Plan | None) -> None:
    """Load and check models, data and references of the cells, and fill the caches.

    Args:
        cells: the cells' configurations.
        plan: generation and evaluation after training; None for none.

    Raises:
        UsageError: a model, data or file of the cells or of the plan cannot be used.
    """
    _builder.cache_clear()  # files may have changed, and the cache moved, since an earlier sweep of this process
    for cfg in cells:
        _builder().model_and_data(cfg)
    if plan is None:
        return
    for cfg in cells:
        plan.check(cfg)
    if cells:
        plan.check_inputs(cells[0])
    if plan.reference is None:
        starts = {(cfg.model.path, cfg.seed, cfg.run.dir): cfg for cfg in cells}
        for cfg in starts.values():
            make_reference(plan, cfg)


def run_job(job: CellJob) -> Ended:
    """Train one cell, and generate and evaluate where its job has a plan; errors of these are part of the result."""
    ended = _run(job)
    if ended.state in (*OVER, "failed"):
        directory = SweepDirectory(Path(job.sweep)).cell(job.id)
        if directory.metrics.is_file():
            refresh_run(directory.path, lambda text: say(text, file=sys.stderr))
    return ended


def _run(job: CellJob) -> Ended:
    from rich.console import Console

    from alphapo_cli.stages.train import Busy, Group, run

    os.chdir(job.folder)
    directory = SweepDirectory(Path(job.sweep)).cell(job.id)
    group, quiet = Group(Path(job.sweep).name, "cell"), Console(stderr=True, quiet=True)
    try:
        summary = run(job.cfg, directory, builder=_builder(), group=group, console=quiet)
    except (Busy, LockLost) as error:
        return Ended(job, "busy", str(error))
    except (KeyboardInterrupt, Interrupted) as error:
        return Ended(job, "interrupted", str(error) or "stopped by the user")
    except Exception as error:
        reason = in_words(error)
        if directory.state == "pending":  # an error before anything was written
            with contextlib.suppress(OSError):
                lock = acquire(directory.lock)
                if isinstance(lock, RunLock):  # else another process works on it
                    try:
                        lock.settle(directory.summary_file)
                        if directory.state == "pending":
                            begin_untrained(job.cfg, directory, "refused before training")
                            directory.finish("failed", reason, 0, {}, {})
                    finally:
                        lock.release()
        return Ended(job, "failed", reason)
    if job.plan is not None:
        try:
            after_training(
                job.plan,
                job.cfg,
                directory,
                lambda found: join_tracking(job.cfg, directory, found, group),
                inside=True,
            )
        except (KeyboardInterrupt, Interrupted) as error:
            return Ended(job, "interrupted", str(error) or "stopped by the user")
        except InUse as error:
            return Ended(job, "busy", str(error))
        except Exception as error:
            reason = f"trained, but not evaluated: {in_words(error)}"
            with contextlib.suppress(OSError):
                if directory.outcome().get("key") != job.plan.key:  # unless another process has succeeded
                    note_failure(job.plan, directory, reason)
            return Ended(job, "failed", reason)
    return Ended(job, str(summary["state"]), summary.get("reason"))

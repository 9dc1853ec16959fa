"""One cell, in whatever process runs it; what cells share stays in that process's memory."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import Interrupted, in_words
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.stages.plan import Plan
from alphapo_cli.stages.train_generate_evaluate import after_training, join_tracking, make_reference, note_failure
from alphapo_cli.storage.jsonl import InUse
from alphapo_cli.storage.run_lock import LockLost, RunLock, acquire
from alphapo_cli.sweep.directory import SweepDirectory

if TYPE_CHECKING:
    from alphapo_cli.stages.training.inputs import InputsBuilder


@functools.cache
def _builder() -> InputsBuilder:
    from alphapo_cli.stages.training.inputs import InputsBuilder

    return InputsBuilder(warm=True)


def prepare(cells: Sequence[TrainConfig], plan: Plan | None) -> None:
    """Read and check what the cells train on and are compared with, and fill the caches.

    Raises:
        UsageError: bad input.
    """
    _builder.cache_clear()  # what an earlier sweep of this process read may have changed, and where its cache was
    for cfg in cells:
        _builder().model_and_data(cfg)
    if plan is None:
        return
    for cfg in cells:
        plan.check(cfg)
    plan.check_inputs()
    if plan.reference is None:
        starts = {(cfg.model.path, cfg.seed, cfg.run.dir): cfg for cfg in cells}
        for cfg in starts.values():
            make_reference(plan, cfg)


def run_job(job: CellJob) -> Ended:
    """Run one cell to its end. Raises nothing that training may raise: the run directory has the reason."""
    from rich.console import Console

    from alphapo_cli.runs.directory import manifest
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
        if directory.state == "pending":  # refused before anything of it was written
            with contextlib.suppress(OSError):
                lock = acquire(directory.lock)
                if isinstance(lock, RunLock):  # else somebody works on it
                    try:
                        if directory.state == "pending":
                            directory.begin(job.cfg, manifest(note="refused before training"))
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
                if directory.outcome().get("key") != job.plan.key:  # another process may have had more luck
                    note_failure(job.plan, directory, reason)
            return Ended(job, "failed", reason)
    return Ended(job, str(summary["state"]), summary.get("reason"))

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
from alphapo_cli.launch.failure import mark_failed
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.report.write import refresh_run
from alphapo_cli.runs.directory import RunDirectory
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
    from alphapo_cli.launch.torchrun import Node
    from alphapo_cli.stages.train import Group
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


def run_job(job: CellJob, node: Node | None = None) -> Ended:
    """Train one cell, and generate and evaluate where its job has a plan; errors of these are part of the result.

    Args:
        job: the cell.
        node: this node, where the cell has several. How it ends on others than the first one is not for them to say.

    Returns:
        How it ended.
    """
    ended = _trained(job, node)
    if node is not None and node.number > 0:
        return ended
    if job.plan is not None and ended.state in OVER:
        ended = _evaluated(job, job.plan, ended)
    if ended.state in (*OVER, "failed"):
        directory = _directory(job)
        if directory.metrics.is_file():
            refresh_run(directory.path, lambda text: say(text, file=sys.stderr))
    return ended


def _trained(job: CellJob, node: Node | None) -> Ended:
    """Train the cell in this process, or in several that this one starts."""
    os.chdir(job.folder)
    if job.processes.world == 1:
        return train(job, builder=_builder())
    from alphapo_cli.launch.torchrun import Node, train_in_processes

    node = node or Node()
    ended = train_in_processes(job, node)
    directory = _directory(job)
    if ended.state == "failed" and node.number == 0 and directory.state not in (*OVER, "failed"):
        with contextlib.suppress(OSError):  # rank 0 had no time to, or no part in it
            mark_failed(directory, job, str(ended.reason))
    return ended


def train(job: CellJob, *, builder: InputsBuilder | None = None, main: bool = True, divided: bool = False) -> Ended:
    """Train one cell in this process, alone or with the others of its process group.

    Args:
        job: the cell.
        builder: what cells of this process share, if any.
        main: whether this process keeps the record: the only one, or rank 0.
        divided: whether several processes divide the cell's steps among them.

    Returns:
        How it ended.

    Raises:
        PeerLost: another process of the group is gone.
    """
    from rich.console import Console

    from alphapo_cli.runtime.distributed import PeerLost
    from alphapo_cli.stages.train import Busy, run

    os.chdir(job.folder)
    directory = _directory(job)
    quiet = Console(stderr=True, quiet=True)
    try:
        summary = run(
            job.cfg, directory, builder=builder, group=_group(job), console=quiet, divided=divided
        )  # fmt: skip
    except (Busy, LockLost) as error:
        return Ended(job, "busy", str(error))
    except (KeyboardInterrupt, Interrupted) as error:
        return Ended(job, "interrupted", str(error) or "stopped by the user")
    except PeerLost:
        raise
    except Exception as error:
        reason = in_words(error)
        if main and directory.state == "pending":  # an error before anything was written
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
    # Rank 0 alone has the record, and its word counts.
    return Ended(job, str(summary["state"]), summary.get("reason")) if main else Ended(job, "complete")


def _evaluated(job: CellJob, plan: Plan, trained: Ended) -> Ended:
    """Generate from a trained cell and evaluate it."""
    directory = _directory(job)
    try:
        after_training(
            plan, job.cfg, directory, lambda found: join_tracking(job.cfg, directory, found, _group(job)), inside=True
        )
    except (KeyboardInterrupt, Interrupted) as error:
        return Ended(job, "interrupted", str(error) or "stopped by the user")
    except InUse as error:
        return Ended(job, "busy", str(error))
    except Exception as error:
        reason = f"trained, but not evaluated: {in_words(error)}"
        with contextlib.suppress(OSError):
            if directory.outcome().get("key") != plan.key:  # unless another process has succeeded
                note_failure(plan, directory, reason)
        return Ended(job, "failed", reason)
    return trained


def _directory(job: CellJob) -> RunDirectory:
    return SweepDirectory(Path(job.sweep)).cell(job.id)


def _group(job: CellJob) -> Group:
    """The sweep, for W&B."""
    from alphapo_cli.stages.train import Group

    return Group(Path(job.sweep).name, "cell")

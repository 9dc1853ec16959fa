"""A checkpoint on disk, from one process or from all that share its tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alphapo_cli.runs import step_record
from alphapo_cli.runs.checkpoints import Checkpoints, TrainingCheckpoint
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.storage.run_lock import RunLock
from alphapo_cli.training.training_state import Shards, write


def store(
    checkpoints: Checkpoints, state: tuple[TrainingCheckpoint, Shards], run: Path, processes: Processes,
    lock: RunLock | None,
) -> None:  # fmt: skip
    """Write a checkpoint with what was recorded up to its step. Collective where processes share its tensors.

    Args:
        checkpoints: where.
        state: the checkpoint, and the tensors that are not in it.
        run: the run directory.
        processes: those that train.
        lock: the run lock in rank 0, None in the others.

    Raises:
        LockLost: another process has taken over the run.
        OSError: the file system refuses the write.
        AlphapoError: another process could not write.
    """
    checkpoint, shards = state
    if lock is not None:
        checkpoint = dataclasses.replace(checkpoint, record=step_record.taken(run))
    if processes.together:
        checkpoints.save_together(checkpoint, lock, processes, lambda folder: write(shards, folder))
    elif lock is not None:
        checkpoints.save(checkpoint, lock)

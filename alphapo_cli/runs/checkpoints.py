"""Checkpoints of a training session, written atomically.

checkpoints/step-N/state.pt   a TrainingCheckpoint as a plain mapping
checkpoints/step-N/shards/    of a sharded run: its tensors, of which each process has written a part
checkpoints/step-N/complete   the step, the run lock's generation, sizes and digests of the files; written last; a
                              directory without it is ignored

A checkpoint is written as .step-N.GENERATION/, flushed to disk and renamed. One of a generation before that in which the
run began is of an owner that was replaced and woke up later: it is not read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.owned_directory import owned_directory, remove_unfinished
from alphapo_cli.storage.run_lock import LockLost, RunLock
from alphapo_cli.storage.strict_json import read_object

_UNKNOWN = 10**6  # later than any generation of a lock
_NAME = re.compile(r"^step-(\d+)$")


# Number of the checkpoint format; raise it with every change of content or names. 1: no number was written; 3: `record`,
# and the digest in `complete`.
FORMAT = 3
SHARDED_FORMAT = 4  # that of a checkpoint with shards
OLDEST_FORMAT = 2  # the oldest that is read; its rows and its content are not checked
_SHARDS = "shards"


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """All that a resumed run needs beside the weights it started from, taken between two optimizer steps."""

    step: int  # optimizer steps done
    weights: Mapping[str, Tensor]  # parameters that train, and buffers
    optimizer: Mapping[str, Any]
    lr_scheduler: Mapping[str, Any]
    processes: Sequence[Mapping[str, Any]]  # per rank: "rng" states; "sums" of metrics since the last log
    part_states: Mapping[str, Mapping[str, Tensor]]  # kind of objective part -> its state
    reference: Mapping[str, Tensor]  # weights of a reference that is updated; empty if it is fixed
    cost: Mapping[str, Any]  # cost of the run so far
    last_probe: Mapping[str, Any]  # the last measurement's metrics
    stopped: str | None = None  # why training stopped, if it did: only the run's final steps are missing
    record: Mapping[str, Any] = field(default_factory=dict)  # file of metrics -> "rows" so far and their "sha256"
    format: int = FORMAT
    # The directory of the tensors that processes share, where they do: weights, reference and the optimizer's moments.
    shards: str | None = None


class Checkpoints:
    """The checkpoints of one run directory; the newest `keep` are kept, all if None."""

    def __init__(self, folder: Path, keep: int | None = 1) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        found = (int(m[1]) for name in os.listdir(self.folder) if (m := _NAME.match(name)))
        return sorted(n for n in found if (self._path(n) / "complete").is_file())

    def load(self, since: int = 1) -> TrainingCheckpoint | None:
        """Load the newest complete checkpoint that is undamaged, and remove the damaged ones that are newer.

        Args:
            since: generation of the run lock under which the run began.

        Returns:
            The checkpoint, with tensors on the CPU, or None if there is none.

        Raises:
            AlphapoError: all are damaged.
            UsageError: the checkpoint has another format than this version reads.
        """
        wrong: dict[int, str] = {}
        for step in reversed(self.steps()):
            if self._generation(step) < since:
                say(
                    f"note: {self._path(step)} is of a process that was replaced before the run began anew; removed",
                    file=sys.stderr,
                )
                self.remove_step(step)
                continue
            try:
                loaded = self.at(step)
            except UsageError:
                raise
            except AlphapoError as error:
                wrong[step] = str(error)
                continue
            for other, why in wrong.items():
                say(f"note: {why}; removed, going on from step {step}", file=sys.stderr)
                self.remove_step(other)
            return loaded
        if wrong:
            raise AlphapoError(
                f"{next(iter(wrong.values()))}, and there is no earlier one that is whole; restore it from a copy, or "
                "start over with --replace"
            )
        return None

    def at(self, step: int) -> TrainingCheckpoint:
        """Load the checkpoint of a step.

        Args:
            step: its step.

        Returns:
            The checkpoint, with tensors on the CPU.

        Raises:
            AlphapoError: it is damaged or missing.
            UsageError: it has another format than this version reads.
        """
        folder = self._path(step)
        marker = self._marker(step)
        found = {"complete": "cannot be read"} if marker is None else checksums.damaged(folder, marker.get("files", {}))
        if found:
            raise AlphapoError(f"{folder} is damaged ({checksums.described(found)})")
        try:
            state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            # Not torch's words: they advise to load it without weights_only, which runs what the file says.
            raise AlphapoError(f"{folder} is damaged (state.pt: cannot be read: {type(error).__name__})") from error
        number = state.get("format", 1)
        if not OLDEST_FORMAT <= number <= SHARDED_FORMAT:
            age = "an older" if number < FORMAT else "a newer"
            raise UsageError(
                f"{folder / 'state.pt'}: a checkpoint of format {number}, made by {age} alphapo; this one reads format "
                f"{OLDEST_FORMAT} to {SHARDED_FORMAT}: go on with that version, or start over with --replace"
            )
        return TrainingCheckpoint(**state, shards=str(folder / _SHARDS) if number == SHARDED_FORMAT else None)

    def save(self, checkpoint: TrainingCheckpoint, lock: RunLock) -> None:
        """Write a checkpoint, then `tidy`.

        Raises:
            LockLost: another process has taken over the run; none of its checkpoints was touched.
            OSError: the file system refuses the write; earlier checkpoints are unchanged.
        """
        with owned_directory(self._path(checkpoint.step), lock) as folder:
            self._write(checkpoint, lock, folder)
        self.tidy(lock)

    def save_together(
        self, checkpoint: TrainingCheckpoint, lock: RunLock | None, processes: Processes, write: Callable[[Path], None]
    ) -> None:
        """Write a checkpoint with shards, then `tidy`. Collective; on a file system that all processes share.

        Args:
            checkpoint: what is written beside the shards.
            lock: the run lock in rank 0, None in the other processes.
            processes: those that write.
            write: writes the shards of this process into a directory.

        Raises:
            LockLost: another process has taken over the run; none of its checkpoints was touched.
            Agreed: a process could not write; earlier checkpoints are unchanged.
        """
        with contextlib.ExitStack() as stack:
            folder, fault = None, None
            if lock is not None:
                try:
                    folder = stack.enter_context(owned_directory(self._path(checkpoint.step), lock))
                except Exception as error:
                    fault = error
            place = processes.same(None if folder is None else str(folder))
            processes.agree(fault, LockLost)
            write(Path(str(place)) / _SHARDS)
            if folder is not None and lock is not None:
                try:
                    self._write(replace(checkpoint, format=SHARDED_FORMAT), lock, folder)
                except Exception as error:
                    fault = error
            processes.agree(fault, LockLost)
        if lock is not None:
            self.tidy(lock)

    def _write(self, checkpoint: TrainingCheckpoint, lock: RunLock, folder: Path) -> None:
        # A file of ours: torch's own writer turns a full disk into an error that does not say so.
        with open(folder / "state.pt", "wb") as file:
            torch.save({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name != "shards"}, file)
        files = checksums.of_files(folder, ["state.pt", _SHARDS])
        marker = {"step": checkpoint.step, "generation": lock.generation, "files": files}
        write_json(folder / "complete", checksums.sealed(marker))

    def tidy(self, lock: RunLock) -> None:
        """Remove incomplete checkpoints of earlier owners, and complete ones beyond the newest `keep`."""
        if not self.folder.is_dir():
            return
        for path in self.folder.glob(".step-*"):
            remove_unfinished(path.with_name(path.name.removeprefix(".").partition(".")[0]), lock)
        steps = self.steps()
        for step in steps[: -self.keep] if self.keep else []:
            self.remove_step(step)

    def remove_step(self, step: int) -> None:
        """Remove the checkpoint of a step."""
        # The marker goes first: a directory half removed is not taken for a checkpoint.
        (self._path(step) / "complete").unlink(missing_ok=True)
        shutil.rmtree(self._path(step), ignore_errors=True)

    def remove(self, lock: RunLock) -> None:
        """Remove all checkpoints up to this owner's, once the run is complete."""
        for step in self.steps():
            if self._generation(step) in (*range(lock.generation + 1), _UNKNOWN):
                with contextlib.suppress(OSError):
                    self.remove_step(step)
        with contextlib.suppress(OSError):  # a run begun anew may have its own
            self.folder.rmdir()

    def _marker(self, step: int) -> dict[str, Any] | None:
        """The content of `complete`; None where it is damaged."""
        return checksums.intact(read_object(self._path(step) / "complete"))

    def _generation(self, step: int) -> int:
        """Generation of its lock: 1 where an older version recorded none, `_UNKNOWN` where the marker is damaged."""
        marker = self._marker(step)
        return _UNKNOWN if marker is None else int(marker.get("generation", 1))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

"""Checkpoints of a training session, written atomically.

checkpoints/step-N/state.pt   a TrainingCheckpoint as a plain mapping
checkpoints/step-N/complete   written last; a directory without it is ignored

A checkpoint is written as .step-N/, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import AlphapoError, UsageError, first_line
from alphapo_cli.storage.atomic import whole_directory, write_json

_NAME = re.compile(r"^step-(\d+)$")


# Number of the checkpoint format; raise it with every change of content or names. 1: no number was written.
FORMAT = 2


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
    format: int = FORMAT


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

    def load(self) -> TrainingCheckpoint | None:
        """Load the newest complete checkpoint.

        Returns:
            The checkpoint, with tensors on the CPU, or None if there is none.

        Raises:
            AlphapoError: state.pt cannot be read.
            UsageError: the checkpoint has another format than `FORMAT`.
        """
        steps = self.steps()
        if not steps:
            return None
        file = self._path(steps[-1]) / "state.pt"
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            first = first_line(error)
            raise AlphapoError(
                f"{file}: cannot be read ({first}); remove {file.parent} to go on from an earlier checkpoint"
            ) from error
        found = state.get("format", 1)
        if found != FORMAT:
            age = "an older" if found < FORMAT else "a newer"
            raise UsageError(
                f"{file}: a checkpoint of format {found}, made by {age} alphapo; this one reads format {FORMAT}: go on with "
                "that version, or start over with --replace"
            )
        return TrainingCheckpoint(**state)

    def save(self, checkpoint: TrainingCheckpoint) -> None:
        """Write a checkpoint, then `tidy`.

        Raises:
            OSError: the file system refuses the write; earlier checkpoints are unchanged.
        """
        with whole_directory(self._path(checkpoint.step)) as folder:
            # A file of ours: torch's own writer turns a full disk into an error that does not say so.
            with open(folder / "state.pt", "wb") as file:
                torch.save({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}, file)
            write_json(folder / "complete", {"step": checkpoint.step})
        self.tidy()

    def tidy(self) -> None:
        """Remove incomplete checkpoints of a killed process, and complete ones beyond the newest `keep`."""
        if not self.folder.is_dir():
            return
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)
        steps = self.steps()
        for step in steps[: -self.keep] if self.keep else []:
            # The marker goes first: a directory half removed is not taken for a checkpoint.
            (self._path(step) / "complete").unlink(missing_ok=True)
            shutil.rmtree(self._path(step), ignore_errors=True)

    def remove(self) -> None:
        """Remove all checkpoints, once the run is complete."""
        for step in self.steps():
            with contextlib.suppress(OSError):
                (self._path(step) / "complete").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

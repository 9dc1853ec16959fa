"""Checkpoints that are there whole or not at all.

checkpoints/step-N/state.pt   weights that train, optimizer, schedule, random generators, sums of the open log window
checkpoints/step-N/complete   written last; a directory without it is not seen

A checkpoint is written as .step-N.<random>/, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from alphapo_cli.errors import AlphapoError
from alphapo_cli.storage.atomic import sync_directory, write_json

_NAME = re.compile(r"^step-(\d+)$")


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, folder: Path, keep: int | None = 1) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        found = (int(m[1]) for name in os.listdir(self.folder) if (m := _NAME.match(name)))
        return sorted(n for n in found if (self._path(n) / "complete").is_file())

    def load(self) -> dict[str, Any] | None:
        """The newest complete checkpoint's content on the CPU, or None where there is none.

        Raises:
            AlphapoError: its file cannot be read.
        """
        steps = self.steps()
        if not steps:
            return None
        file = self._path(steps[-1]) / "state.pt"
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise AlphapoError(
                f"{file}: cannot be read ({first}); remove {file.parent} to go on from an earlier checkpoint"
            ) from error
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those beyond `keep` and what kills left half-written.

        Raises:
            OSError: the disk refuses; earlier checkpoints are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".step-{step}.{secrets.token_hex(4)}"
        try:
            beside.mkdir()
            with open(beside / "state.pt", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            write_json(beside / "complete", {"step": step})
            sync_directory(beside)
            target = self._path(step)
            if target.exists():
                shutil.rmtree(target)
            os.rename(beside, target)
            sync_directory(self.folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self.tidy()

    def tidy(self) -> None:
        """Remove what a kill left half-written, and complete checkpoints beyond `keep`."""
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
        """All of them: the run is complete."""
        for step in self.steps():
            with contextlib.suppress(OSError):
                (self._path(step) / "complete").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

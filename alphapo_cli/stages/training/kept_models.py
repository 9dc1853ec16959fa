"""Models of steps before the last, which trainer.save_models_at keeps as models/step-N/."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import MODELS
from alphapo_cli.storage.owned_directory import remove_unfinished
from alphapo_cli.storage.run_lock import RunLock

_PREFIX = "step-"


def step_of(fraction: float, total_steps: int) -> int:
    """The optimizer step, of `total_steps`, that is nearest to a fraction of training; 0 and the last only for 0 and 1."""
    if fraction in (0, 1):
        return round(fraction * total_steps)
    return min(max(1, round(fraction * total_steps)), max(1, total_steps - 1))


def kept_steps(fractions: Sequence[float], total_steps: int) -> tuple[int, ...]:
    """The steps of trainer.save_models_at, ascending, each once and without the last, whose model is model/."""
    return tuple(sorted({step_of(fraction, total_steps) for fraction in fractions} - {total_steps}))


@dataclass(frozen=True)
class KeptModels:
    """Where and when the models of one run are kept."""

    folder: Path
    steps: tuple[int, ...]

    @classmethod
    def of(cls, cfg: TrainConfig, directory: RunDirectory, total_steps: int) -> KeptModels:
        """Those that a configuration asks for."""
        return cls(directory.path / MODELS, kept_steps(cfg.trainer.save_models_at, total_steps))

    def of_step(self, step: int) -> Path:
        """Folder of the model of a step."""
        return self.folder / f"{_PREFIX}{step}"

    def go_back(self, step: int, lock: RunLock) -> None:
        """Remove the models of steps after `step`, at which a run resumes, and what a killed session left half written.

        Args:
            step: the checkpoint's step.
            lock: the run lock that this process holds.

        Raises:
            UsageError: a model of an earlier step is gone.
        """
        for kept in self.steps:
            folder = self.of_step(kept)
            remove_unfinished(folder, lock)
            if kept > step:
                shutil.rmtree(folder, ignore_errors=True)
            elif not folder.is_dir():
                raise UsageError(
                    f"{folder}: the model of step {kept}, which trainer.save_models_at kept, is gone; put it back from a "
                    "copy, or start over with --replace"
                )

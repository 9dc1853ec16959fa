"""The directory of an Arena-Hard evaluation: AlpacaEval's, and the public tool's files in arena_hard/.

arena_hard/question.jsonl
arena_hard/model_answer/<model>.jsonl             and the baseline's
arena_hard/model_judgment/<judge>/<model>.jsonl   what --annotations takes
annotations.json                                  AlpacaEval's format, with the mean of both verdicts as preference
leaderboard.csv                                   the public tool's columns

The folder arena_hard/ can be copied as data/<benchmark>/ of the public tool.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.keys import leaves
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardJudgeConfig, ArenaHardStatistics
from alphapo_cli.stages.directories.evaluation import EvalDirectory
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.jsonl import json_line


@dataclass(frozen=True)
class ArenaHardDirectory(EvalDirectory):
    """Paths and state of an Arena-Hard evaluation."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = leaves(asdict(ArenaHardJudgeConfig()), "judge.")
    STATISTICS: ClassVar[Mapping[str, Any]] = asdict(ArenaHardStatistics())

    @property
    def public(self) -> Path:
        """Folder of the public tool's files."""
        return self.path / "arena_hard"

    @property
    def questions(self) -> Path:
        """Path of question.jsonl."""
        return self.public / "question.jsonl"

    def answers(self, model: str) -> Path:
        """Path of a model's answers."""
        return self.public / "model_answer" / f"{file_name(model)}.jsonl"

    def judgments(self, judge: str, model: str) -> Path:
        """Path of a judge's judgements of a model."""
        return self.public / "model_judgment" / file_name(judge) / f"{file_name(model)}.jsonl"

    def begin(self, manifest: dict[str, Any], *, replace: bool) -> None:
        """See `EvalDirectory.begin`."""
        if replace and self.public.is_dir():
            shutil.rmtree(self.public)
        super().begin(manifest, replace=replace)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines, beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json_line(row) for row in rows))


def file_name(name: str) -> str:
    """A model's or judge's name as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "model"

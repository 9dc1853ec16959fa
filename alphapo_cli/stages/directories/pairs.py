"""The directories of `alphapo score` and `alphapo pairs`.

    manifest.json, config.yaml   as of every command; summary.json says "complete" last

    score: scores.jsonl          prompt (hash), source, number, and the column's score (null: none) of every answer
           scored.jsonl          prompt, responses, scores, sources: for `alphapo pairs --answers` and list objectives

    pairs: pairs.jsonl           prompt, chosen, rejected, score_chosen, score_rejected, margin, sources, stage
           scored.jsonl          prompt, responses, scores: the answers that took part, of prompts with a pair
           dropped.jsonl         prompt, reason: every other prompt
           pairs.png             margins, lengths, ties

Every file follows from inputs and settings alone: a second run and one after a kill write the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.runs.keyed_directory import KeyedDirectory
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import json_line
from alphapo_cli.storage.strict_json import read_object


@dataclass(frozen=True)
class MadeDirectory(KeyedDirectory):
    """Paths and state of a directory whose files are written at the end."""

    LOG: ClassVar[str] = "partial.jsonl"  # of which there is none
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    FILES: ClassVar[Sequence[str]] = ()

    @property
    def summary_file(self) -> Path:
        """Path of summary.json."""
        return self.path / "summary.json"

    def open(self, identity: dict[str, Any], *, replace: bool) -> str:
        """The state, pending or complete; UsageError where the directory holds something else or cannot be written."""
        summary = self.summary() if self.begun(identity, replace=replace) else {}
        if summary.get("state") == "complete" and not checksums.damaged(self.path, summary.get("files") or {}):
            return "complete"
        self.check_writable()
        return "pending"

    def begin(self, manifest: dict[str, Any], cfg: Any) -> None:
        """Create the directory, without what an earlier start has left."""
        for name in ("summary.json", *self.FILES):
            (self.path / name).unlink(missing_ok=True)
        write_json(self.manifest, checksums.sealed(manifest))
        write_atomic(self.path / "config.yaml", to_yaml(cfg))

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a JSONL file."""
        write_atomic(self.path / name, "".join(map(json_line, rows)))

    def finish(self, state: str, **fields: Any) -> dict[str, Any]:
        """Write summary.json, the last file, and return it."""
        files = checksums.of_files(self.path, self.FILES)
        write_json(self.summary_file, checksums.sealed({"state": state, **fields, "files": files}))
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, empty without a readable one."""
        return checksums.intact(read_object(self.summary_file)) or {}


@dataclass(frozen=True)
class ScoreDirectory(MadeDirectory):
    """The directory of `alphapo score`."""

    COMMAND: ClassVar[str] = "score"
    WHAT: ClassVar[tuple[str, str]] = ("a scoring", "scoring")
    OWN: ClassVar[str] = "scorer"
    FILES: ClassVar[Sequence[str]] = ("scores.jsonl", "scored.jsonl")


@dataclass(frozen=True)
class PairsDirectory(MadeDirectory):
    """The directory of `alphapo pairs`."""

    COMMAND: ClassVar[str] = "pairs"
    WHAT: ClassVar[tuple[str, str]] = ("a set of pairs", "set of pairs")
    OWN: ClassVar[str] = "pairing"
    FILES: ClassVar[Sequence[str]] = ("pairs.jsonl", "scored.jsonl", "dropped.jsonl", "pairs.png")

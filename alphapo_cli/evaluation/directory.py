"""The directory of an evaluation.

manifest.json       what was evaluated: hashes of the inputs, judge, command, versions
judgements.jsonl    every answer of a judge that is a model, as it arrived
annotations.json    AlpacaEval's format
results.json        the result object; written last
leaderboard.csv     AlpacaEval's columns (unless --leaderboard names another)
winrate.png

What is judged and by whom decides the directory. Statistics are computed from what is stored: other settings of theirs
compute them anew in place and never ask the judge again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.evaluation.judges.journal import FILE as JUDGEMENTS
from alphapo_cli.runs.keyed_directory import KeyedDirectory, differing, read_object
from alphapo_cli.storage.atomic import write_json


@dataclass(frozen=True)
class EvalDirectory(KeyedDirectory):
    """Paths and state."""

    COMMAND: ClassVar[str] = "eval"
    WHAT: ClassVar[tuple[str, str]] = ("an evaluation", "evaluation")
    OWN: ClassVar[str] = "judge"
    LOG: ClassVar[str] = JUDGEMENTS

    @property
    def annotations(self) -> Path:
        return self.path / "annotations.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def leaderboard(self) -> Path:
        return self.path / "leaderboard.csv"

    @property
    def picture(self) -> Path:
        return self.path / "winrate.png"

    def open(self, identity: dict[str, Any], statistics: dict[str, Any], *, replace: bool) -> str:
        """pending, continued, statistics (only these differ) or complete. Creates and removes nothing.

        Raises:
            UsageError: the directory holds another evaluation, or something else; it cannot be written.
        """
        if not self.begun(identity, replace=replace):
            self.check_writable()
            return "pending"
        results = read_object(self.results)
        if results is None or results.get("state") != "complete" or not self.annotations.is_file():
            self.check_writable()
            return "continued"
        return "statistics" if differing(results.get("statistics") or {}, statistics) else "complete"

    def begin(self, manifest: dict[str, Any], *, replace: bool) -> None:
        """Make the directory; with `replace` remove what an earlier evaluation left, judgements included."""
        if replace:
            for file in (self.results, self.annotations, self.leaderboard, self.picture, self.log):
                file.unlink(missing_ok=True)
        write_json(self.manifest, manifest)

    def load_results(self) -> dict[str, Any]:
        return read_object(self.results) or {}

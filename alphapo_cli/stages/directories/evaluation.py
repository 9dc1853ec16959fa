"""The directory of an evaluation.

manifest.json       what was evaluated: hashes of the inputs, judge, command, versions
judgements.jsonl    every answer of a judge model, appended as it arrives
annotations.json    AlpacaEval's format
results.json        the result object; written last
leaderboard.csv     AlpacaEval's columns (unless --leaderboard names another)
winrate.png
mass.json           written by --recheck: the probability of each answer's verdict

Outputs, reference and judge determine the directory. Statistics are computed from the stored judgements: changed
statistics settings recompute them in place without querying the judge.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.keys import leaves
from alphapo_cli.errors import say
from alphapo_cli.evaluation.judges.journal import FILE as JUDGEMENTS
from alphapo_cli.evaluation.schema import JudgeConfig, StatisticsConfig, verdict_settings
from alphapo_cli.evaluation.verdict import verdict
from alphapo_cli.runs.keyed_directory import KeyedDirectory, differing
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.strict_json import read_object

_STATISTICS = {**asdict(StatisticsConfig()), **verdict_settings(JudgeConfig())}


@dataclass(frozen=True)
class EvalDirectory(KeyedDirectory):
    """Paths and state of an evaluation."""

    COMMAND: ClassVar[str] = "eval"
    WHAT: ClassVar[tuple[str, str]] = ("an evaluation", "evaluation")
    OWN: ClassVar[str] = "judge"
    LOG: ClassVar[str] = JUDGEMENTS
    DEFAULTS: ClassVar[Mapping[str, Any]] = leaves(asdict(JudgeConfig()), "judge.")
    STATISTICS: ClassVar[Mapping[str, Any]] = _STATISTICS

    @property
    def annotations(self) -> Path:
        """Path of annotations.json."""
        return self.path / "annotations.json"

    @property
    def results(self) -> Path:
        """Path of results.json."""
        return self.path / "results.json"

    @property
    def masses(self) -> Path:
        """Path of mass.json."""
        return self.path / "mass.json"

    @property
    def leaderboard(self) -> Path:
        """Path of leaderboard.csv."""
        return self.path / "leaderboard.csv"

    @property
    def picture(self) -> Path:
        """Path of winrate.png."""
        return self.path / "winrate.png"

    def open(self, identity: dict[str, Any], statistics: dict[str, Any], *, replace: bool) -> str:
        """Check that the directory can take this evaluation, without creating or removing anything.

        Args:
            identity: what the judgements depend on; must equal the manifest's.
            statistics: the statistics settings.
            replace: whether an existing evaluation may be replaced.

        Returns:
            The state: pending, continued, statistics (complete with other statistics settings) or complete.

        Raises:
            UsageError: the directory holds another evaluation or other files, or cannot be written.
        """
        # Where every attempt failed, what the error said to change may be part of the identity.
        if not self.begun(identity, replace=replace or (self._nothing_kept() and not self.holds(identity))):
            self.check_writable()
            return "pending"
        results = checksums.intact(read_object(self.results))
        wrong = {self.results.name: "has changed"} if results is None and self.results.is_file() else self._damage()
        if wrong:
            say(f"note: {self.path}: {checksums.described(wrong)}; computed again from the judgements", file=sys.stderr)
        if results is None or wrong or results.get("state") != "complete" or not self.annotations.is_file():
            self.check_writable()
            return "continued"
        changed = differing(results.get("statistics") or {}, statistics, self.STATISTICS)
        return "statistics" if changed else "complete"

    def begin(self, manifest: dict[str, Any], *, replace: bool) -> None:
        """Create the directory; with `replace` delete an earlier evaluation's files, judgements included."""
        if replace:
            for file in (self.results, self.annotations, self.masses, self.leaderboard, self.picture, self.log):
                file.unlink(missing_ok=True)
        write_json(self.manifest, checksums.sealed(manifest))

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write results.json, an evaluation's last file, with its verdict and the checksum of annotations.json.

        Args:
            results: the figures.

        Returns:
            What `load_results` does.
        """
        files = checksums.of_files(self.path, [self.annotations.name])
        write_json(self.results, checksums.sealed({**results, "verdict": verdict(results), "files": files}))
        return self.load_results()

    def _nothing_kept(self) -> bool:
        """Whether the directory has a manifest that can be read, and no answer of a judge."""
        if self.stored() is None:
            return False
        inside = {p.name for p in self.path.iterdir()}
        return inside <= {self.manifest.name, self.LOG} and not (self.log.is_file() and self.log.stat().st_size)

    def _damage(self) -> dict[str, str]:
        return checksums.damaged(self.path, (read_object(self.results) or {}).get("files") or {})

    def load_results(self) -> dict[str, Any]:
        """The figures in results.json, empty without a readable one."""
        stored = checksums.intact(read_object(self.results)) or {}
        return {key: value for key, value in stored.items() if key not in ("checksum", "files")}

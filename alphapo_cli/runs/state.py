"""State and results of a run, read from its directory in milliseconds: the configuration's schema is not imported."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.storage import checksums
from alphapo_cli.storage.committed_file import committed
from alphapo_cli.storage.run_lock import lock_status
from alphapo_cli.storage.strict_json import parsed_object, read_file, read_object

OVER = ("complete", "stopped")  # states from which no run resumes
OUTCOME = "outcome.json"
MODELS = "models"  # folder of the models of steps before the last
NOT_EVALUATED = "trained, not evaluated as this line says"
_SECTIONS = ("metrics", "cost", "data", "verdict", "files")  # of summary.json and outcome.json
TAIL = 1 << 16  # bytes, more than a row of metrics takes


@dataclass(frozen=True)
class RunState:
    """Paths and state of one run. Reads, never writes."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Provenance of the run, hashes of its inputs."""
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """Metrics of every logged step."""
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        """The file of the final state and metrics."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """The run lock, a folder."""
        return self.path / ".claim"

    def read_manifest(self) -> dict[str, Any]:
        """Read manifest.json; empty if there is none that can be read, or it is damaged."""
        return checksums.intact(read_object(self.manifest)) or {}

    def manifest_section(self, name: str) -> dict[str, Any]:
        """A mapping in manifest.json; empty where it has none of that name."""
        found = self.read_manifest().get(name)
        return found if isinstance(found, dict) else {}

    def summary(self) -> dict[str, Any] | None:
        """Read summary.json; None if there is none that can be read, or it is damaged."""
        try:
            return _shaped(checksums.intact(parsed_object(self.summary_content())))
        except OSError:
            return None

    def summary_content(self) -> bytes:
        """Read what counts as summary.json: also what was committed by a process that was killed before it was renamed.

        Returns:
            The bytes of the file.

        Raises:
            OSError: there is none that can be read.
        """
        beside = committed(self.lock, self.summary_file)
        if beside is not None:
            with contextlib.suppress(FileNotFoundError):  # it has just been given its name
                return read_file(beside)
        return read_file(self.summary_file)

    def damage(self, *, content: bool = False) -> dict[str, str]:
        """Files of a run that is over which are not as summary.json has them.

        Args:
            content: whether to compare digests, which reads the files; False compares sizes.

        Returns:
            Name -> what is wrong; empty if all is well, if the run is not over, or if an older version wrote it.
        """
        files = (self.summary() or {}).get("files")
        return checksums.damaged(self.path, files, content=content) if isinstance(files, dict) else {}

    def changed_config(self) -> str | None:
        """What is wrong with config.yaml by the checksum that manifest.json has of it; None if nothing is."""
        found = checksums.damaged(self.path, self.manifest_section("checksums"))
        return checksums.described(found) if found else None

    def outcome(self) -> dict[str, Any]:
        """Read outcome.json, the results of generation and evaluation; empty if there is none of this training."""
        found = _shaped(checksums.intact(read_object(self.path / OUTCOME))) or {}
        # One of a training that another process has replaced meanwhile is of another model.
        return {} if found.get("of") is not None and found["of"] != self.ended_as() else found

    def ended_as(self) -> str | None:
        """The checksum of summary.json, by which an outcome knows its training; None where there is none."""
        return (self.summary() or {}).get("checksum")

    @property
    def state(self) -> str:
        """State of the run: complete, running, interrupted, stopped, failed, or pending if it has not started, damaged."""
        return self.state_of(self.summary())

    def state_of(self, summary: dict[str, Any] | None) -> str:
        """`state`, from a summary that has been read already."""
        if not self.config.is_file():
            return "pending"
        if summary is None and self.summary_file.is_file():
            return "damaged"
        state = str((summary or {}).get("state", "interrupted"))
        if state == "running":
            now = lock_status(self.lock)
            return "running" if now is not None and now.held else "interrupted"
        return state


def _shaped(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The object, None where a section of it is no object: without a checksum it may be anybody's."""
    wrong = found is not None and any(not isinstance(found.get(name), dict | None) for name in _SECTIONS)
    return None if wrong else found


def model_step(summary: Mapping[str, Any]) -> int:
    """The step that model/ is of: the best by trainer.metric_for_best_model where it was chosen so, else the last."""
    chosen = summary.get("best")
    step = (chosen if isinstance(chosen, dict) else summary).get("step")
    return step if isinstance(step, int) else 0


def last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a JSONL file, read from its end; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        return row if isinstance(row, dict) else {}
    return {}

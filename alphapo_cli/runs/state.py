"""What a run directory says of its run, read without importing a configuration's schema: a look takes milliseconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.storage.run_lock import lock_status

OVER = ("complete", "stopped")  # states of runs that no line takes up again
OUTCOME = "outcome.json"
NOT_EVALUATED = "trained, not evaluated as this line says"
TAIL = 1 << 16  # bytes, more than a row of metrics takes


@dataclass(frozen=True)
class RunState:
    """Paths and state of one run. Reads, never writes."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        return self.path / ".claim"

    def read_manifest(self) -> dict[str, Any]:
        """manifest.json, empty where there is none or it cannot be read."""
        return _object(self.manifest) or {}

    def summary(self) -> dict[str, Any] | None:
        """summary.json, or None where there is none or it cannot be read."""
        return _object(self.summary_file)

    def outcome(self) -> dict[str, Any]:
        """outcome.json: what generating and evaluating found; empty where there is none."""
        return _object(self.path / OUTCOME) or {}

    @property
    def state(self) -> str:
        """complete, running, interrupted, stopped, failed, or pending where there is nothing yet."""
        return self.state_of(self.summary())

    def state_of(self, summary: dict[str, Any] | None) -> str:
        """`state`, for who has read the summary already."""
        if not self.config.is_file():
            return "pending"
        state = str((summary or {}).get("state", "interrupted"))
        if state == "running":
            now = lock_status(self.lock)
            return "running" if now is not None and now.held else "interrupted"
        return state


def _object(path: Path) -> dict[str, Any] | None:
    try:
        return parsed(path.read_bytes())
    except OSError:
        return None


def parsed(content: bytes) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where it is damaged."""
    try:
        loaded = json.loads(content)
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None


def last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a JSONL file, without reading all of it; empty where there is none."""
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

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

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.journal import FILE as JUDGEMENTS
from alphapo_cli.evaluation.judges.journal import check_free
from alphapo_cli.files import check_folder, usable, write_json
from alphapo_cli.runs import digest


def name(generator: str, identity: dict[str, Any]) -> str:
    """eval-<generator>-<hash8 of what is judged and by whom>."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", generator).strip("-.")[:60] or "model"
    return f"eval-{safe}-{digest(identity)[:8]}"


@dataclass(frozen=True)
class EvalDirectory:
    """Paths and state."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

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

    def claim(self, identity: dict[str, Any], statistics: dict[str, Any], *, replace: bool) -> str:
        """pending, continued, statistics (only these differ) or complete. Creates and removes nothing.

        Raises:
            UsageError: the directory holds another evaluation, or something else; it cannot be written.
        """
        fix = "choose another --out"
        with usable(self.path, fix):
            state = self._claim(identity, statistics, replace=replace)
        if state != "complete":
            check_folder(self.path, fix)
        return state

    def _claim(self, identity: dict[str, Any], statistics: dict[str, Any], *, replace: bool) -> str:
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return "pending"
        stored = _read(self.manifest)
        if stored is None or not isinstance(stored.get("identity"), dict):
            raise UsageError(f"{self.path} exists and is not an evaluation; choose another --out or move it away")
        check_free(self.path)
        if replace:
            return "pending"
        keys = _differing(stored["identity"], identity)
        if keys:
            raise UsageError(
                f"{self.path} holds another evaluation (differs in: {', '.join(keys)}); "
                "choose another --out, or start over with --replace"
            )
        results = _read(self.results)
        if results is None or results.get("state") != "complete" or not self.annotations.is_file():
            return "continued"
        return "statistics" if _differing(results.get("statistics") or {}, statistics) else "complete"

    def begin(self, manifest: dict[str, Any], *, replace: bool) -> None:
        """Make the directory; with `replace` remove what an earlier evaluation left, judgements included."""
        if replace:
            for file in (self.results, self.annotations, self.leaderboard, self.picture, self.path / JUDGEMENTS):
                file.unlink(missing_ok=True)
        write_json(self.manifest, manifest)

    def load_results(self) -> dict[str, Any]:
        return _read(self.results) or {}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys with different values."""
    flat_old, flat_new = _flat(old), _flat(new)
    return sorted(k for k in flat_old.keys() | flat_new.keys() if flat_old.get(k) != flat_new.get(k))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found

"""The directory of a measurement.

manifest.json    what was measured: hashes of models, pairs and settings; command, versions
config.yaml      resolved configuration
measured.jsonl   one row a pair, keys as in probe.jsonl, and the pair's scores
tokens.jsonl     with --tokens: one row an answer, values of each of its tokens
measured.png     displacement of each pair, and by two scores
shape.png        the objective's reward and its slope, and where the answers' scores are
tokens.html      with --tokens: the same to read
mass.json        the tokens to which the probability of chosen tokens went
metrics.json     the result object; written last
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.errors import say
from alphapo_cli.runs.keyed_directory import KeyedDirectory
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import json_line
from alphapo_cli.storage.strict_json import read_object

_RESULTS = ("measured.jsonl", "tokens.jsonl", "mass.json")
_FILES = ("metrics.json", *_RESULTS, "measured.png", "shape.png", "tokens.html")


@dataclass(frozen=True)
class MeasureDirectory(KeyedDirectory):
    """Paths and state of a measurement."""

    COMMAND: ClassVar[str] = "measure"
    WHAT: ClassVar[tuple[str, str]] = ("a measurement", "measurement")
    OWN: ClassVar[str] = "measured"
    LOG: ClassVar[str] = "measured.jsonl"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"settings.falls": 3}

    @property
    def result_file(self) -> Path:
        """Path of metrics.json."""
        return self.path / "metrics.json"

    @property
    def tokens(self) -> Path:
        """Path of tokens.jsonl."""
        return self.path / "tokens.jsonl"

    @property
    def picture(self) -> Path:
        """Path of measured.png."""
        return self.path / "measured.png"

    @property
    def shape(self) -> Path:
        """Path of shape.png."""
        return self.path / "shape.png"

    def open(self, identity: dict[str, Any], *, replace: bool, tokens: bool) -> str:
        """Check that the directory can take this measurement, without creating or removing anything.

        Args:
            identity: what the values depend on; must equal the manifest's.
            replace: whether an existing measurement may be replaced.
            tokens: whether values of single tokens are asked for.

        Returns:
            The state: pending or complete.

        Raises:
            UsageError: the directory holds another measurement or other files, or cannot be written.
        """
        if self.begun(identity, replace=replace):
            result = self.result()
            if result.get("state") == "complete":
                damage = checksums.damaged(self.path, result.get("files") or {})
                if damage:
                    said = f"note: {self.path}: {checksums.described(damage)}; the model is measured again"
                    say(said, file=sys.stderr)
                elif self.tokens.is_file() or not tokens:
                    return "complete"
        self.check_writable()
        return "pending"

    def begin(self, manifest: dict[str, Any], cfg: Any) -> None:
        """Create the directory and remove the results of an earlier measurement in it."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        write_json(self.manifest, checksums.sealed(manifest))
        write_atomic(self.path / "config.yaml", to_yaml(cfg))

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write a JSON Lines file whole."""
        write_atomic(self.path / name, "".join(json_line(row) for row in rows))

    def finish(self, **fields: Any) -> dict[str, Any]:
        """Write metrics.json, the last file of a measurement, and return it."""
        files = checksums.of_files(self.path, _RESULTS)
        write_json(self.result_file, checksums.sealed({"state": "complete", **fields, "files": files}))
        return self.result()

    def result(self) -> dict[str, Any]:
        """The content of metrics.json, empty without a readable one."""
        return checksums.intact(read_object(self.result_file)) or {}

"""The directory of a generation.

manifest.json          model, prompts and sampling settings: hashes, command, versions
config.yaml            resolved configuration
partial.jsonl          every finished answer as token ids, until all are there
vllm.log               vLLM's output
model_outputs.json     AlpacaEval's format: the first answer to each prompt
model_outputs-K.json   with generation.samples=N: answer K = 1 to N-1 to each prompt, in the same format
summary.json           {"state", "metrics", "cost", ...}; the generation is complete only if "state" says so
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.config.keys import leaves
from alphapo_cli.errors import UsageError, say
from alphapo_cli.generation.schema import GenerateConfig, GenerationConfig
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.runs.keyed_directory import KeyedDirectory
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import read_jsonl
from alphapo_cli.storage.strict_json import read_object


@dataclass(frozen=True)
class GenerateDirectory(KeyedDirectory):
    """Paths and state of a generation."""

    COMMAND: ClassVar[str] = "generate"
    WHAT: ClassVar[tuple[str, str]] = ("a generation", "generation")
    OWN: ClassVar[str] = "prompts"
    LOG: ClassVar[str] = "partial.jsonl"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **leaves(asdict(GenerationConfig()), "generation."),
        "generation.seed": GenerateConfig().seed,
    }

    @property
    def summary_file(self) -> Path:
        """Path of summary.json."""
        return self.path / "summary.json"

    @property
    def engine_log(self) -> Path:
        """Path of vllm.log."""
        return self.path / "vllm.log"

    def outputs(self, sample: int = 0) -> Path:
        """Path of the file with answer `sample` (from 0) to each prompt."""
        return self.path / (f"model_outputs-{sample}.json" if sample else "model_outputs.json")

    def open(self, identity: dict[str, Any], *, replace: bool) -> str:
        """Check that the directory can take this generation, without creating or removing anything.

        Args:
            identity: what the answers depend on; must equal the manifest's.
            replace: whether an existing generation may be replaced.

        Returns:
            The state: pending, continued or complete.

        Raises:
            UsageError: the directory holds another generation or other files, its summary is damaged, or it cannot be
                written.
        """
        begun = self.begun(identity, replace=replace)
        if begun and self.summary_file.exists() and not self.summary():
            self.summary_file.read_bytes()  # an OSError here: an unreadable one may say "complete"
            raise UsageError(  # a damaged one may have said so, too
                f"{self.summary_file} is damaged, and may have said that the answers are complete; restore it, or "
                "remove it to generate again"
            )
        if begun and self.summary().get("state") == "complete" and self.outputs().is_file():
            damage = checksums.damaged(self.path, self.summary().get("files") or {}, content=False)
            if not damage:
                return "complete"
            say(f"note: {self.path}: {checksums.described(damage)}; the answers are generated again", file=sys.stderr)
        self.check_writable()
        return "continued" if begun else "pending"

    def begin(self, manifest: dict[str, Any], cfg: Any, *, replace: bool) -> None:
        """Create the directory; with `replace` delete an earlier generation's files, finished answers included."""
        if replace:
            for file in (self.summary_file, self.log, self.engine_log, *self.path.glob("model_outputs*.json")):
                file.unlink(missing_ok=True)
        write_json(self.manifest, checksums.sealed(manifest))
        write_atomic(self.path / "config.yaml", to_yaml(cfg))

    def finished(self) -> dict[tuple[int, int], Sample]:
        """Read the answers in partial.jsonl.

        Returns:
            (row, sample) -> answer.

        Raises:
            UsageError: a line is no answer.
        """
        found: dict[tuple[int, int], Sample] = {}
        for row in read_jsonl(self.log) if self.log.is_file() else []:
            values: list[Any] = [row.get(key) for key in ("row", "sample", "ids", "cut")]
            number, sample, ids, cut = values
            whole = isinstance(ids, list) and all(type(value) is int and value >= 0 for value in (number, sample, *ids))
            if not whole or not isinstance(cut, bool):
                raise UsageError(
                    f"{self.log}: a line is no answer (row {number!r}); delete it, and it is generated again"
                )
            found[number, sample] = Sample(ids, cut)
        return found

    def finish(self, state: str, **fields: Any) -> dict[str, Any]:
        """Write summary.json, the last file of a generation, and return it."""
        files = {"files": checksums.of_files(self.path, [p.name for p in self.path.glob("model_outputs*.json")])}
        summary = {"state": state, **fields, **(files if state == "complete" else {})}
        write_json(self.summary_file, checksums.sealed(summary))
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, empty without a readable one."""
        return checksums.intact(read_object(self.summary_file)) or {}

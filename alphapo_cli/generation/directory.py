"""The directory of a generation.

manifest.json          whose answers to what, drawn how: hashes, command, versions
config.yaml            resolved configuration
partial.jsonl          every finished answer as token ids, while the work lasts
vllm.log               what vLLM said
model_outputs.json     AlpacaEval's format: the first answer to each prompt
model_outputs-K.json   with generation.samples=N: the answers number K = 1 to N-1, each file of the same form
summary.json           {"state", "metrics", "cost", ...}; complete only when it says so
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.runs.keyed_directory import KeyedDirectory, read_object
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import read_jsonl


@dataclass(frozen=True)
class GenerateDirectory(KeyedDirectory):
    """Paths and state."""

    COMMAND: ClassVar[str] = "generate"
    WHAT: ClassVar[tuple[str, str]] = ("a generation", "generation")
    OWN: ClassVar[str] = "prompts"
    LOG: ClassVar[str] = "partial.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def engine_log(self) -> Path:
        return self.path / "vllm.log"

    def outputs(self, sample: int = 0) -> Path:
        return self.path / (f"model_outputs-{sample}.json" if sample else "model_outputs.json")

    def open(self, identity: dict[str, Any], *, replace: bool) -> str:
        """pending, continued or complete. Creates and removes nothing.

        Raises:
            UsageError: the directory holds another generation, or something else; its summary is damaged.
        """
        begun = self.begun(identity, replace=replace)
        if begun and self.summary_file.exists() and not self.summary():
            self.summary_file.read_bytes()  # one that cannot be read just now may say "complete"
            raise UsageError(  # and so may one that is damaged
                f"{self.summary_file} is damaged, and may have said that the answers are complete; restore it, or "
                "remove it to generate again"
            )
        if begun and self.summary().get("state") == "complete" and self.outputs().is_file():
            return "complete"
        self.check_writable()
        return "continued" if begun else "pending"

    def begin(self, manifest: dict[str, Any], cfg: Any, *, replace: bool) -> None:
        """Make the directory; with `replace` remove what an earlier generation left, finished answers included."""
        if replace:
            for file in (self.summary_file, self.log, self.engine_log, *self.path.glob("model_outputs*.json")):
                file.unlink(missing_ok=True)
        write_json(self.manifest, manifest)
        write_atomic(self.path / "config.yaml", to_yaml(cfg))

    def finished(self) -> dict[tuple[int, int], Sample]:
        """The answers in partial.jsonl by (prompt, sample)."""
        rows = read_jsonl(self.log) if self.log.is_file() else []
        return {(row["row"], row["sample"]): Sample(row["ids"], row["cut"]) for row in rows}

    def finish(self, state: str, **facts: Any) -> dict[str, Any]:
        """Write summary.json, the last thing a generation writes."""
        write_json(self.summary_file, {"state": state, **facts})
        return self.summary()

    def summary(self) -> dict[str, Any]:
        return read_object(self.summary_file) or {}

"""The directory of a generation.

manifest.json          model, prompts and sampling settings: hashes, command, versions
config.yaml            resolved configuration
partial.jsonl          every finished answer as token ids, until all are there
prompts.jsonl          the prompts, and answers.jsonl every answer as it was sampled; see `generation.answers`
vllm.log               vLLM's output
model_outputs.json     AlpacaEval's format: the first answer to each prompt
model_outputs-K.json   with generation.samples=N: answer K = 1 to N-1 to each prompt, in the same format
summary.json           {"state", "metrics", "cost", ...}; the generation is complete only if "state" says so
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.config.keys import leaves
from alphapo_cli.errors import UsageError, say
from alphapo_cli.generation import answers
from alphapo_cli.generation.backend import Request
from alphapo_cli.generation.prompt import Prompt
from alphapo_cli.generation.schema import ANSWERS, PROMPTS, GenerateConfig, GenerationConfig
from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.runs.identity import names_in
from alphapo_cli.runs.keyed_directory import KeyedDirectory, differing
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_atomic, write_json
from alphapo_cli.storage.jsonl import LineLog, read_jsonl
from alphapo_cli.storage.strict_json import read_object

# In manifest.json, while answers are added to fewer: size and digest of the answers.jsonl that holds those.
_EARLIER = "earlier_answers"


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
        begun = self.begun(self._continued(identity), replace=replace)
        if begun and self.stored() != identity and self.holds_fewer(identity):
            self.check_writable()
            return "continued"
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
            for file in (self.summary_file, self.log, self.engine_log, *self._results()):
                file.unlink(missing_ok=True)
        # What the summary has of fewer answers is still needed to believe them, and again after a kill.
        was = None if replace else self._recorded_answers()
        write_json(self.manifest, checksums.sealed({**manifest, **({_EARLIER: was} if was else {})}))
        # That of fewer answers to a prompt would say "complete" of these.
        self.summary_file.unlink(missing_ok=True)
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
            found[number, sample] = Sample(ids, cut, row.get("logprob"))
        return found

    def kept(self, asked: int) -> str:
        """How many of the `asked` answers are kept, for messages."""
        return f"{len(self.finished())} of {asked} answers are kept in {self.log}"

    def taken_over(self) -> set[tuple[int, int]]:
        """Those of `finished` that another generation had made, by (row, sample)."""
        rows = read_jsonl(self.log) if self.log.is_file() else []
        return {(row["row"], row["sample"]) for row in rows if row.get("from")}

    def take_over(
        self, identity: dict[str, Any], prompts: Sequence[Prompt], requests: Sequence[Request], log: LineLog
    ) -> None:
        """Append the answers that the same generation with another number of answers a prompt has made.

        Args:
            identity: what the answers depend on.
            prompts: the prompts.
            requests: every answer that is asked for.
            log: partial.jsonl.
        """
        done = set(self.finished())
        for other in self._others(identity):
            made = answers.read(other, prompts)
            found = [request for request in requests if request.key in made and request.key not in done]
            if found:
                log.add(*(answers.log_line(request, made[request.key], other.name) for request in found))
                done |= {request.key for request in found}

    def _others(self, identity: dict[str, Any]) -> list[Path]:
        """This directory, and those beside it that hold the generation with another number of answers, undamaged."""
        beside = [type(self)(self.path.parent / n) for n in names_in(self.path.parent) if n.startswith(self.COMMAND)]
        same = [d for d in beside if d.path != self.path and _same_but_samples(d, identity)]
        found = []
        for directory in (self, *same):
            was = directory._recorded_answers()
            damage = checksums.damaged(directory.path, {ANSWERS: was}) if was else {}
            if damage:
                said = f"note: {directory.path}: {checksums.described(damage)}; its answers are generated again"
                say(said, file=sys.stderr)
            elif was:
                found.append(directory.path)
        return found

    def _recorded_answers(self) -> Any:
        """Size and digest of answers.jsonl when it was written; None where nothing is recorded."""
        files = self.summary().get("files")
        manifest = checksums.intact(read_object(self.manifest)) or {}
        return files.get(ANSWERS) if isinstance(files, dict) else manifest.get(_EARLIER)

    def holds_fewer(self, identity: dict[str, Any]) -> bool:
        """Whether the directory holds this generation with fewer answers to each prompt."""
        stored = self.stored()
        return stored is not None and _same_but_samples(self, identity) and _samples(stored) < _samples(identity)

    def _continued(self, identity: dict[str, Any]) -> dict[str, Any]:
        """The identity that the directory may hold: fewer answers to each prompt are gone on with."""
        return (self.stored() or identity) if self.holds_fewer(identity) else identity

    def _results(self) -> list[Path]:
        return [
            *self.path.glob("model_outputs*.json"),
            *(self.path / name for name in (ANSWERS, PROMPTS)),
        ]

    def finish(self, state: str, **fields: Any) -> dict[str, Any]:
        """Write summary.json, the last file of a generation, and return it."""
        files = {"files": checksums.of_files(self.path, [p.name for p in self._results()])}
        summary = {"state": state, **fields, **(files if state == "complete" else {})}
        write_json(self.summary_file, checksums.sealed(summary))
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, empty without a readable one."""
        return checksums.intact(read_object(self.summary_file)) or {}


def _samples(identity: dict[str, Any]) -> int:
    return int(identity["generation"]["samples"])


def _same_but_samples(directory: GenerateDirectory, identity: dict[str, Any]) -> bool:
    """Whether a directory holds a generation that differs from `identity` in nothing but the number of answers."""
    stored = directory.stored()
    return stored is not None and differing(stored, identity, directory.DEFAULTS) == ["generation.samples"]

"""Existing judgements as judge: an annotations.json of AlpacaEval or of an earlier `alphapo eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import Annotations, ModelOutputs, short
from alphapo_cli.evaluation.judges.judge import Judged, Verdict
from alphapo_cli.evaluation.judges.protocol import Pair
from alphapo_cli.evaluation.output_check import strip_hint
from alphapo_cli.storage.hashing import digest

_FIELDS = {"preference_raw_completion": "raw", "preference_price_per_example": "price",
           "preference_time_per_example": "seconds", "preference_date": "date"}  # fmt: skip


class Replay:
    """Looks up the judgement of each pair by its instruction."""

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        self.rows = annotations.by_instruction()
        named = list(dict.fromkeys(row.annotator for row in annotations.rows if row.annotator is not None))
        self.annotator = " and ".join(named) or "unknown"

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`."""
        rows = [[r.instruction, r.output_1, r.output_2, r.preference] for r in self.annotations.rows]
        return {"annotations": digest(rows), "annotator": self.annotator}

    def check_model(self, outputs: ModelOutputs) -> None:
        """Check that the annotations judge these outputs.

        Args:
            outputs: the outputs to evaluate.

        Raises:
            UsageError: the annotations name another model, share no instruction with `outputs`, or judge other texts.
        """
        other = self.annotations.generator
        if other is not None and outputs.named and other != outputs.generator:
            raise UsageError(
                f"{self.annotations.path} judges the model {other!r}, {outputs.path} is by {outputs.generator!r}: "
                "give the annotations of these outputs"
            )
        shared = [row for row in outputs.rows if row.instruction in self.rows]
        if not shared:
            raise UsageError(f"{self.annotations.path} has none of the instructions of {outputs.path}")
        changed = [row for row in shared if self.rows[row.instruction].output_2 != row.output]
        if changed:
            raise UsageError(
                f"{self.annotations.path} judges other outputs than {outputs.path}: {len(changed)} of {len(shared)} "
                f"texts differ, first at instruction {short(changed[0].instruction)}"
                f"{strip_hint([(self.rows[row.instruction].output_2, row.output) for row in changed])}"
            )

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        """See `Judge.check`; the annotations must have the same reference outputs."""
        changed = [p for p in pairs if p.instruction in self.rows and self.rows[p.instruction].output_1 != p.output_1]
        if changed:
            raise UsageError(
                f"{self.annotations.path} was judged against another reference: output_1 differs from it on "
                f"{len(changed)} instructions, first {short(changed[0].instruction)}"
                f"{strip_hint([(self.rows[p.instruction].output_1, p.output_1) for p in changed])}"
            )

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        """See `Judge.judge`."""
        return Judged([self._verdict(pair.instruction) for pair in pairs])

    def _verdict(self, instruction: str) -> Verdict | None:
        row = self.rows.get(instruction)
        if row is None:
            return None
        known = {field: row.extra.get(column) for column, field in _FIELDS.items()}
        rest = {column: value for column, value in row.extra.items() if column not in _FIELDS}
        return Verdict(row.preference, extra=rest, **known)

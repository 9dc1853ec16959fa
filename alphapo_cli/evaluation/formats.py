"""AlpacaEval's files: model outputs and annotations, plain or .gz, old and new column names.

A file is validated completely when it is read, and errors name file and row, counted from 1. The columns are those of
alpaca_eval 0.6.6 (github.com/tatsu-lab/alpaca_eval).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.json_rows import read_rows
from alphapo_cli.storage import strict_json

DEFAULT_FILE = {"outputs": "model_outputs.json", "annotations": "annotations.json"}
# Columns of 0.6.6 by their names in earlier versions.
RENAMED = {
    "price_per_example": "preference_price_per_example",
    "time_per_example": "preference_time_per_example",
    "raw_completion": "preference_raw_completion",
}
_OWN = ("instruction", "dataset", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference")


@dataclass(frozen=True)
class Output:
    """A model's answer to one instruction."""

    instruction: str
    output: str
    dataset: str | None = None


@dataclass(frozen=True)
class ModelOutputs:
    """A model_outputs.json: one `Output` per instruction.

    `named`: whether the file names its generator; otherwise `generator` is the name of its folder.
    """

    path: str
    generator: str
    rows: tuple[Output, ...]
    named: bool = True

    def by_instruction(self) -> dict[str, Output]:
        """The rows by instruction."""
        return {row.instruction: row for row in self.rows}


@dataclass(frozen=True)
class Annotation:
    """One judged pair: output_1 is the reference's, output_2 the model's.

    `preference`: from 1 (reference better) to 2 (model better), 1.5 a draw, None no judgement; `extra`: every other
    column, by its name in 0.6.6.
    """

    instruction: str
    output_1: str
    output_2: str
    preference: float | None
    generator_1: str | None = None
    generator_2: str | None = None
    dataset: str | None = None
    annotator: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The row of annotations.json."""
        return {name: getattr(self, name) for name in _OWN} | dict(self.extra)


@dataclass(frozen=True)
class Annotations:
    """An annotations.json; `rows` in the file's order."""

    path: str
    rows: tuple[Annotation, ...]

    def by_instruction(self) -> dict[str, Annotation]:
        """The rows by instruction."""
        return {row.instruction: row for row in self.rows}

    @property
    def generator(self) -> str | None:
        """The judged model's name; None if no row has one."""
        return next((row.generator_2 for row in self.rows if row.generator_2 is not None), None)


def read_outputs(path: Path) -> ModelOutputs:
    """Read model outputs.

    Args:
        path: a file, or a directory with a model_outputs.json.

    Returns:
        The outputs in file order.

    Raises:
        UsageError: the file is unreadable, empty or not JSON, a row lacks `instruction` or `output`, an instruction
            occurs twice, or several generators are mixed.
    """
    path = _inside(path, "outputs")
    rows, names = [], []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        rows.append(Output(_text(row, "instruction", where), _text(row, "output", where), _label(row, "dataset")))
        names.append(_label(row, "generator"))
    _unique([row.instruction for row in rows], path)
    distinct = list(dict.fromkeys(names))
    if len(distinct) > 1:
        shown = ", ".join(repr(name) for name in distinct[:3])
        raise UsageError(f"{path}: outputs of {len(distinct)} generators in one file ({shown}); split it by generator")
    fallback = path.name.partition(".")[0]
    name = distinct[0] or path.absolute().parent.name or fallback
    return ModelOutputs(str(path), name, tuple(rows), named=bool(distinct[0]))


def read_annotations(path: Path, preferences: str = "auto") -> Annotations:
    """Read annotations.

    Args:
        path: a file, or a directory with an annotations.json.
        preferences: what its numbers mean. "alpaca_eval": 1 (reference better) to 2 (model better), and 0 for a draw as
            in old files; "01": 0 lost, 1 won; "auto": the former, unless there are zeros and nothing above 1.

    Returns:
        The annotations in file order; a draw is 1.5.

    Raises:
        UsageError: the file is unreadable, empty or not JSON, a row lacks a column, an instruction occurs twice, a
            preference is no number of its kind, none is given, or "auto" cannot tell what they mean.
    """
    path = _inside(path, "annotations")
    rows, raw = [], []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        if "preference" not in row:
            kind = "Arena-Hard's (--protocol arena_hard)" if "games" in row else "an annotations file"
            raise UsageError(f"{where}: no 'preference' (its columns: {', '.join(row)}); is this {kind}?")
        raw.append(row["preference"])
        rows.append(
            Annotation(
                instruction=_text(row, "instruction", where),
                output_1=_text(row, "output_1", where),
                output_2=_text(row, "output_2", where),
                preference=_preference(row["preference"], where, preferences == "01"),
                generator_1=_label(row, "generator_1"),
                generator_2=_label(row, "generator_2"),
                dataset=_label(row, "dataset"),
                annotator=_label(row, "annotator"),
                extra={RENAMED.get(key, key): value for key, value in row.items() if key not in _OWN},
            )
        )
    _one_judgement_each(rows, path)
    given = [row.preference for row in rows if row.preference is not None]
    if not given:
        raise UsageError(f"{path}: no row has a preference, so there is nothing to count")
    # A preference that is missing, null or NaN, says nothing about what the others mean.
    told = {value for value, row in zip(raw, rows, strict=True) if row.preference is not None}
    if preferences == "auto" and 0 in told and told <= {0, 1}:
        raise UsageError(
            f"{path}: no preference is above 1, and some are 0: is this lost and won? --preferences=01 reads it so; in "
            "AlpacaEval's files 0 is a draw and 1 is lost: --preferences=alpaca_eval"
        )
    return Annotations(str(path), tuple(rows))


def check_same_set(outputs: ModelOutputs, reference: ModelOutputs) -> None:
    """Check that the reference has every instruction of the outputs; the reverse is not required.

    Args:
        outputs: the model's outputs.
        reference: the reference outputs.

    Raises:
        UsageError: the reference lacks instructions of `outputs`; the message shows how many, and the first.
    """
    known = {row.instruction for row in reference.rows}
    unknown = [row.instruction for row in outputs.rows if row.instruction not in known]
    if unknown:
        raise UsageError(
            f"{outputs.path}: {len(unknown)} of {len(outputs.rows)} instructions are not in the reference "
            f"{reference.path}, first {short(unknown[0])}"
        )


def short(text: str, width: int = 60) -> str:
    """`text` quoted on one line, cut at `width` characters."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _one_judgement_each(rows: Sequence[Annotation], path: Path) -> None:
    """Refuse a file with several judgements of an instruction, and say where they may come from."""
    try:
        _unique([row.instruction for row in rows], path)
    except UsageError as error:
        for column, what in (("generator_2", "models"), ("generator_1", "references"), ("annotator", "judges")):
            names = sorted({str(getattr(row, column)) for row in rows})
            if len(names) > 1:
                listed = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
                raise UsageError(
                    f"{error}; it has rows of {len(names)} {what} ({listed}): keep those of one"
                ) from error
        raise


def _inside(path: Path, kind: str) -> Path:
    if not path.is_dir():
        return path
    for name in (DEFAULT_FILE[kind], f"{DEFAULT_FILE[kind]}.gz"):
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{path} holds no {DEFAULT_FILE[kind]}; name the file")


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        hint = "; Arena-Hard's answers go with --protocol arena_hard" if "messages" in row or "choices" in row else ""
        raise UsageError(f"{where}: no '{column}' (its columns: {', '.join(map(str, row)) or 'none'}){hint}")
    value = row[column]
    if not isinstance(value, str):
        raise UsageError(f"{where}: '{column}' is {json.dumps(value)[:40]}, not text")
    at = strict_json.half_character(value)
    if at is not None:
        raise UsageError(
            f"{where}: '{column}' holds half a character (\\u{ord(value[at]):04x}) at {at}; it cannot be written "
            "as UTF-8"
        )
    return value


def _label(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None else str(value)


def _inside_zero_one(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1


def _preference(value: Any, where: str, zero_one: bool) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        raise UsageError(f"{where}: preference {short(value, 20)} is text; write numbers")
    if zero_one:
        if not _inside_zero_one(value):
            raise UsageError(
                f"{where}: preference {json.dumps(value)[:40]} is outside [0, 1] (0 lost, 1 won, null none)"
            )
        return 1.0 + float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        hint = "; --preferences=01 reads 0 as lost and 1 as won" if _inside_zero_one(value) else ""
        raise UsageError(
            f"{where}: preference {json.dumps(value)[:40]} is outside [1, 2] (1 reference, 2 model, null none){hint}"
        )
    return 1.5 if value == 0 else float(value)


def _unique(instructions: Sequence[str], path: Path) -> None:
    first: dict[str, int] = {}
    for number, text in enumerate(instructions, start=1):
        if text in first:
            repeated = len(instructions) - len(set(instructions))
            raise UsageError(
                f"{path}: {repeated} duplicate instruction{'s' if repeated > 1 else ''}, first {short(text)} "
                f"(rows {first[text]} and {number})"
            )
        first[text] = number

"""Bad input ends with exit code 2 and one line that names the file, the row and what is wrong; nothing is written."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.eval_world import Case, alphapo, one_line, outputs, write


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, n=8)


def refused(case: Case, capsys: pytest.CaptureFixture[str], *more: Any) -> str:
    assert case.replay(*more) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert not case.out.exists()
    return one_line(said.err)


def without(rows: list[dict[str, Any]], at: int, column: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if i != at or k != column} for i, row in enumerate(rows)]


def with_(rows: list[dict[str, Any]], at: int, **values: Any) -> list[dict[str, Any]]:
    return [row | values if i == at else row for i, row in enumerate(rows)]


OUTPUTS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], tuple[str, ...]]] = {
    "no instruction": (lambda r: without(r, 2, "instruction"), ("row 3", "no 'instruction'")),
    "no output": (lambda r: without(r, 7, "output"), ("row 8", "no 'output'")),
    "output null": (lambda r: with_(r, 0, output=None), ("row 1", "'output' is null")),
    "duplicates": (lambda r: [*r, r[3], r[5]], ("2 duplicate instructions", "'Question 3: why?'", "rows 4 and 9")),
    "absent": (
        lambda r: with_(with_(r, 1, instruction="Who?"), 4, instruction="Where?"),
        ("2 of 8 instructions are not in the reference", "'Who?'"),
    ),
    "two generators": (lambda r: with_(r, 4, generator="other"), ("2 generators",)),
    "half a character": (lambda r: with_(r, 1, output="ab\ud83d"), ("row 2", "\\ud83d", "at 2")),
    "empty file": (lambda r: "", ("is empty",)),
    "empty list": (lambda r: [], ("is empty",)),
    "not a list": (lambda r: {"rows": r}, ("list of rows",)),
    "not objects": (lambda r: [*r[:2], "text"], ("row 3",)),
    "a number of 5000 digits": (
        lambda r: json.dumps(with_(r, 0, output=0)).replace('"output": 0', f'"output": {"1" * 5000}'),
        ("row 1", "'output' is Infinity, not text"),
    ),
    "not JSON": (lambda r: json.dumps(r, indent=1).replace('"dataset": "made",', '"dataset": made,', 1), ("line 3",)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(case: Case, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, expected = OUTPUTS[name]
    write(case.outputs, spoil(case.rows))
    said = refused(case, capsys)
    assert str(case.outputs) in said
    for text in expected:
        assert text in said


ANNOTATIONS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], tuple[str, ...]]] = {
    "too large": (lambda r: with_(r, 4, preference=2.01), ("row 5", "2.01", "[1, 2]")),
    "too small": (lambda r: with_(r, 0, preference=0.5), ("row 1", "0.5")),
    "text": (lambda r: with_(r, 1, preference="1"), ("row 2", "preference '1' is text")),
    "no preference": (lambda r: without(r, 1, "preference"), ("row 2", "no 'preference'")),
    "another model by name": (
        lambda r: [row | {"generator_2": "elsewhere"} for row in r],
        ("'elsewhere'", "'tuned'"),
    ),
    "another model by text": (lambda r: with_(r, 6, output_2="?"), ("1 of 8 texts differ", "'Question 6: why?'")),
    "another reference": (lambda r: with_(r, 6, output_1="?"), ("another reference", "'Question 6: why?'")),
    "other questions": (
        lambda r: [row | {"instruction": row["instruction"] + "!"} for row in r],
        ("none of the instructions",),
    ),
    "duplicates": (lambda r: [*r, r[0]], ("1 duplicate instruction,", "rows 1 and 9")),
    "empty": (lambda r: "\n", ("is empty",)),
    "not JSON": (lambda r: '[{"instruction": "a"},\n{]', ("line 2",)),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations(case: Case, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, expected = ANNOTATIONS[name]
    write(case.annotations, spoil(case.judged))
    said = refused(case, capsys)
    assert str(case.annotations) in said
    for text in expected:
        assert text in said


def test_annotations_of_another_real_model(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    other = Case(case.folder / "other", n=8, generator="untuned")
    case.annotations = other.annotations
    assert "'untuned'" in refused(case, capsys)


def test_missing_and_broken_files(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    good, case.outputs = case.outputs, case.folder / "nowhere.json"
    assert "nowhere.json: cannot be read" in refused(case, capsys)
    case.outputs = case.folder / "broken.json.gz"
    case.outputs.write_bytes(gzip.compress(good.read_bytes())[:-30])
    assert "broken.json.gz: cannot be read" in refused(case, capsys)
    case.outputs = case.folder / "latin.json"
    case.outputs.write_bytes('[{"instruction": "é"}]'.encode("latin-1"))
    assert "latin.json: cannot be read" in refused(case, capsys)
    case.outputs = case.folder
    assert "holds no model_outputs.json" in refused(case, capsys)


def test_duplicates_in_the_reference(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    write(case.reference, [*case.reference_rows, case.reference_rows[2]])
    said = refused(case, capsys)
    assert str(case.reference) in said
    assert "duplicate" in said


LENGTH_CONTROL: dict[str, tuple[str, Callable[[str], str], str]] = {
    "short difficulty": ("difficulty", lambda t: "\n".join(t.splitlines()[:-1]), "7 difficulties and the reference"),
    "difficulty not a number": ("difficulty", lambda t: t.replace("\n3,", "\n3,hard", 1), "line 5"),
    "difficulty infinite": ("difficulty", lambda t: re.sub(r"\n3,.*", "\n3,inf", t), "'inf', not a finite number"),
    "difficulty index": ("difficulty", lambda t: t.replace("\n3,", "\n33,", 1), "index 33 is not a row"),
    "difficulty column": ("difficulty", lambda t: t.replace("instruction_difficulty", "hardness"), "no 'instruction_diff"),
    "gamed preference": ("gamed", lambda t: t.replace(",concise", ",concise\n1.7,0,0.1,0.1,False,concise", 1), "1.7"),
    "gamed column": ("gamed", lambda t: t.replace("std_delta_len", "delta"), "no 'std_delta_len'"),
    "gamed empty": ("gamed", lambda t: t.splitlines()[0], "a header and no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTH_CONTROL)
def test_length_control_files(case: Case, capsys: pytest.CaptureFixture[str], name: str) -> None:
    which, spoil, expected = LENGTH_CONTROL[name]
    path: Path = getattr(case, which)
    path.write_text(spoil(path.read_text()))
    said = refused(case, capsys, *case.length_controlled())
    assert str(path) in said
    assert expected in said


def test_options_that_do_not_go_together(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["eval", case.outputs, "--out", case.out]
    lines: list[tuple[list[Any], str]] = [
        ([], "--reference"),
        (["--reference", case.reference, "--judge", "replay"], "--annotations"),
        (["--reference", case.reference, "--judge", "glassbox", "--annotations", case.annotations], "--judge replay"),
        (["--reference", case.reference, "--judge", "gpt"], "no such judge"),
        (["--reference", case.reference, "--judge", "replay", "judge=openai"], "both given"),
        (["--reference", case.reference, "--judge", "glassbox"], "not an instruction of the embedded world"),
        (["--reference", case.reference, "judge.timout=3"], "did you mean"),
        (["--reference", case.reference, "statistics.max_cost=3"], "did you mean 'judge.max_cost'?"),
        (["--reference", case.reference, "statistics.confidence=1.5"], "statistics.confidence"),
        (["--reference", case.reference, "--json", case.folder / "no" / "x.json"], "no such folder"),
    ]
    for more, expected in lines:
        assert alphapo(*base, *more) == 2
        assert expected in one_line(capsys.readouterr().err)
    assert not case.out.exists()


def test_a_directory_with_something_else_is_left_alone(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    write(case.out / "thesis.txt", "years of work")
    assert case.replay() == 2
    assert "is not an evaluation" in one_line(capsys.readouterr().err)
    assert case.replay("--replace") == 2
    assert [p.name for p in case.out.iterdir()] == ["thesis.txt"]


def test_prompt_files(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    line = ["eval", case.outputs, "--reference", case.reference, "--judge", "openai", "--out", case.out]
    prompt = write(case.folder / "prompt.txt", "{instruction} {output_1}")
    assert alphapo(*line, f"judge.prompt_file={prompt}") == 2
    assert "{output_2}" in one_line(capsys.readouterr().err)
    write(prompt, "<|im_start|>user\n{instruction} {output_1} {output_2}")
    assert alphapo(*line, f"judge.prompt_file={prompt}") == 2
    assert "<|im_end|>" in one_line(capsys.readouterr().err)


def test_outputs_may_lack_rows_and_all_of_them_null_is_a_failed_run(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    write(case.outputs, outputs(8, "tuned")[:5])
    write(case.annotations, [r | {"preference": None if i < 5 else 1.2} for i, r in enumerate(case.judged)])
    assert case.replay() == 1
    assert "no judgement in any row" in capsys.readouterr().err

"""Answers are looked at before anything is paid for: what is odd is counted, and thoughts are removed where asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alphapo_cli.evaluation.output_check import look, notes, without_thought

THOUGHTS = {
    "<think>so it is</think>\n\nBerlin.": "Berlin.",
    "  <think>\n</think>Berlin.": "Berlin.",
    "the user wants a city\n</think>\nBerlin.": "Berlin.",  # the prompt had its beginning
    "<think>a</think><think>b</think>Berlin.": "Berlin.",
    "<think>and so on and so": "",
    "[THINK]x[/THINK]Berlin.": "Berlin.",
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>Berlin.": "Berlin.",
    "<|START_THINKING|>x<|END_THINKING|>Berlin.": "Berlin.",
}
PLAIN = (
    "Berlin.", "", "  two\nlines ", "The tag <think> opens a thought and </think> ends it.",
    "Write `</s>` to end a sequence, then go on.", "In HTML, <b>bold</b>.", "User: who is there?\nHost: me.",
)  # fmt: skip


@pytest.mark.parametrize("text", THOUGHTS)
def test_the_thought_at_the_beginning_goes(text: str) -> None:
    assert without_thought(text) == THOUGHTS[text]
    assert look([text])["thoughts"] == 1


@pytest.mark.parametrize("text", PLAIN)
def test_an_answer_stays_as_it_is(text: str) -> None:
    assert without_thought(text) == text
    counts = look([text])
    assert counts == {"n": 1, "empty": int(not text), "thoughts": 0, "unfinished_thoughts": 0, "special_tokens": 0,
                      "headers": 0}  # fmt: skip


@pytest.mark.parametrize(
    "end", ["<|eot_id|>", "</s>", "<|im_end|>", "<eos>", "<end_of_turn>\n", "<｜end▁of▁sentence｜>"]
)
def test_special_tokens_at_the_end(end: str) -> None:
    assert look([f"Berlin.{end}", "Berlin."])["special_tokens"] == 1


@pytest.mark.parametrize(
    "text",
    ["Berlin.<|im_start|>user\nAnd", "Berlin.<|start_header_id|>user<|end_header_id|>", "Berlin.\n\nHuman:",
     "Berlin.\n### Instruction:", "Berlin.<start_of_turn>user"],
)  # fmt: skip
def test_headers_of_another_turn(text: str) -> None:
    assert look([text])["headers"] == 1


def test_what_is_said() -> None:
    looked = {"outputs": look(["", "<think>a</think>b", "<think>c", "d</s>"]), "reference": look(["a"])}
    (line,) = notes(looked, False)
    assert line == (
        "of 4 answers of the model: 1 empty, 2 with a thought (<think>), 1 whose thought does not end, "
        "1 ending in a special token; --strip-think removes thoughts, on both sides"
    )
    assert notes({"outputs": look(["a"]), "reference": look(["b"])}, False) == []


class TestEval:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[str, str]:
        """Answers of the embedded world's kind, one of which begins with a thought."""
        texts = {
            "outputs": ["<think>long and longer</think>cherry !", "apple .", ""],
            "reference": ["cherry .", "apple .", "hm"],
        }
        for name, answers in texts.items():
            rows = [
                {"instruction": f"please name {n} fruits .", "output": text, "generator": name}
                for n, text in zip(("two", "three", "four"), answers, strict=True)
            ]
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return "outputs.json", "reference.json"

    def test_both_sides_are_counted_and_said_before_and_beside_the_rate(self, files, alphapo) -> None:
        ran = alphapo("eval", files[0], "--reference", files[1], "--json", "-")
        assert ran.code == 0, ran.err
        said = "of 3 answers of the model: 1 empty, 1 with a thought (<think>); --strip-think removes thoughts"
        assert f"note: {said}" in ran.err
        found = json.loads(ran.out.splitlines()[-1])
        assert found["answers"]["outputs"]["thoughts"] == 1
        assert found["answers"]["strip_think"] is False
        assert ran.err.count("1 with a thought") >= 2  # the table has it, too

    def test_stripped_answers_are_other_answers(self, files, alphapo) -> None:
        line = ("eval", files[0], "--reference", files[1], "--json", "-")
        whole, stripped = (json.loads(alphapo(*line, *more).out.splitlines()[-1]) for more in ((), ("--strip-think",)))
        assert whole["path"] != stripped["path"]
        assert stripped["answers"]["strip_think"] is True
        assert stripped["avg_length"] < whole["avg_length"]
        rows = json.loads((Path(stripped["path"]) / "annotations.json").read_text())
        assert [row["output_2"] for row in rows] == ["cherry !", "apple .", ""]

    def test_annotations_of_other_texts_are_refused(self, files, alphapo, tmp_path) -> None:
        rows = [{**row, "output_1": "x", "output_2": row["output"], "preference": 1.5, "generator_2": "outputs"}
                for row in json.loads((tmp_path / "outputs.json").read_text())]  # fmt: skip
        (tmp_path / "annotations.json").write_text(json.dumps(rows))
        refused = alphapo(
            "eval", files[0], "--reference", files[1], "--annotations", "annotations.json", "--strip-think"
        )
        assert refused.code == 2
        assert "judges other outputs than" in refused.fault

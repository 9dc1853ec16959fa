"""Answers are looked at before anything is paid for: what is odd is counted, and thoughts are removed where asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.evaluation.output_check import look, notes, without_thought

NOTHING = {
    "empty": 0, "thoughts": 0, "thoughts_inside": 0, "unfinished_thoughts": 0, "only_thoughts": 0, "mentions": 0,
    "special_tokens": 0, "headers": 0,
}  # fmt: skip
PLAIN = (
    "Berlin.", "  two\nlines ", "Write `</s>` to end a sequence, then go on.", "In HTML, <b>bold</b>.",
    "User: who is there?\nHost: me.", "It was <s>Bonn</s>", "The token is `<|im_end|>`.", 'It ends with "</s>".',
    "```\n<|im_start|>user\nhello<|im_end|>\n```", "Its end token (<|eot_id|>) comes last.", "Ask your assistant\nfor it.",
    "the model\n\nand the assistant\n\nare here", "a[i] = b[j]", "x <|> y", "Dear user,\n\nhello",
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "thoughts": {"outputs": "<think>x</think>Berlin."},
    "thoughts_inside": {"thoughts": 1, "outputs": "Berlin.<think>x</think>Yes."},
    "unfinished_thoughts": {"thoughts": 1, "only_thoughts": 1, "outputs": "<think>and on"},
    "only_thoughts": {"thoughts": 1, "outputs": "<think>x</think>"},
    "mentions": {"outputs": "Its mark is `<think>`."},
    "empty": {"outputs": " \n"},
}


@pytest.mark.parametrize("text", PLAIN)
def test_an_answer_with_nothing_odd(text: str) -> None:
    assert without_thought(text) == text
    assert look([text]) == {"n": 1, **NOTHING}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_odd_is_counted(kind: str) -> None:
    expected = {key: n for key, n in KINDS[kind].items() if key != "outputs"}
    assert look([KINDS[kind]["outputs"], "Berlin."]) == {"n": 2, **NOTHING, kind: 1, **expected}


@pytest.mark.parametrize(
    "end",
    ["<|eot_id|>", "</s>", "<|im_end|>", "<eos>", "<EOS>", "[EOS]", "<end_of_turn>\n", "<｜end▁of▁sentence｜>", "<|endoftext|>",
     "<|end_of_text|>", "<|eom_id|>", "<|return|>", "[|endofturn|]", "<turn|>", "<pad><pad>", "[PAD]", " [/INST]", "\n</s>\n",
     "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>"],
)  # fmt: skip
def test_special_tokens_at_the_end(end: str) -> None:
    assert look([f"Berlin.{end}", "Berlin."]) == {"n": 2, **NOTHING, "special_tokens": 1}


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[EOS]"])
def test_an_answer_that_goes_on_after_its_end(end: str) -> None:
    assert look([f"Berlin.{end}\nBerlin again.", "Berlin."])["special_tokens"] == 1


@pytest.mark.parametrize(
    "text",
    ["Berlin.<|im_start|>user\nAnd", "Berlin.<|start_header_id|>user<|end_header_id|>", "Berlin.\n\nHuman:",
     "Berlin.\n### Instruction:", "Berlin.<start_of_turn>user", "assistant\n\nBerlin.", "\nassistant\nBerlin.",
     "Assistant: Berlin.", "ASSISTANT: Berlin.", "<|assistant|>Berlin.", "<｜Assistant｜>Berlin.", "model\nBerlin.",
     "<|start_header_id|>assistant<|end_header_id|>\n\nBerlin.", "<|im_start|>assistant\nBerlin.", "### Response:\nBerlin.",
     "<start_of_turn>model\nBerlin.", "[|assistant|]Berlin.", "<|start_of_role|>assistant<|end_of_role|>Berlin.",
     "Berlin.assistant\n\nBerlin.", "Berlin.\nuser\n\nAnd France?", "Berlin.\n\nHuman: France?\n\nAssistant: Paris.",
     "GPT4 Correct Assistant: Berlin.", "Berlin.[INST] And France?"],
)  # fmt: skip
def test_headers_of_turns(text: str) -> None:
    assert look([text])["headers"] == 1


def test_what_is_said() -> None:
    looked = {"outputs": look(["", "<think>a</think>b", "<think>c", "d</s>"]), "reference": look(["a"])}
    (line,) = notes(looked, False)
    assert line == (
        "of 4 answers of the model: 1 empty, 2 with a thought (<think>), 1 whose thought does not end, 1 with nothing but a "
        "thought, 1 with a special token as text; --strip-think removes thoughts, on both sides"
    )
    (line,) = notes(looked, True)
    assert line.endswith("; thoughts removed (--strip-think)")
    assert notes({"outputs": look(["a"]), "reference": look(["b"])}, False) == []
    (line,) = notes({"outputs": look(["the `<think>` tag"])}, True)
    assert line == (
        "of 1 answers of the model: 1 with such a mark in code, in quotes or as a word of a sentence, which stays"
    )


def test_results_of_an_earlier_version_have_fewer_counts() -> None:
    old = {"n": 2, "empty": 0, "thoughts": 1, "unfinished_thoughts": 0, "special_tokens": 0, "headers": 0}
    assert len(notes({"outputs": old}, True)) == 1


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

    @pytest.mark.slow
    def test_stripped_answers_are_other_answers(self, files, alphapo) -> None:
        line = ("eval", files[0], "--reference", files[1], "--json", "-")
        whole, stripped = (json.loads(alphapo(*line, *more).out.splitlines()[-1]) for more in ((), ("--strip-think",)))
        assert whole["path"] != stripped["path"]
        assert stripped["answers"]["strip_think"] is True
        assert stripped["avg_length"] < whole["avg_length"]
        rows = json.loads((Path(stripped["path"]) / "annotations.json").read_text())
        assert [row["output_2"] for row in rows] == ["cherry !", "apple .", ""]

    @pytest.mark.slow
    @pytest.mark.parametrize("side", ["output_2", "output_1"])
    def test_judgements_of_answers_with_or_without_thoughts_say_which(self, side, files, alphapo, tmp_path) -> None:
        """The thought is on one side, in what was judged or in what is given, and the option is the wrong one."""
        for name, thinks in (("outputs", side == "output_2"), ("reference", side == "output_1")):
            texts = ["<think>long</think>cherry !" if thinks else "cherry .", "apple ."]
            rows = [{"instruction": f"please name {n} fruits .", "output": text, "generator": name}
                    for n, text in zip(("two", "three"), texts, strict=True)]  # fmt: skip
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        own, base = (json.loads((tmp_path / file).read_text()) for file in files)
        line = ("eval", files[0], "--reference", files[1], "--annotations", "annotations.json")
        for stripped in (False, True):
            judged: list[dict[str, Any]] = [
                {"instruction": a["instruction"], "output_1": b["output"], "output_2": a["output"], "preference": 1.25,
                 "generator_2": "outputs"}
                for a, b in zip(own, base, strict=True)
            ]  # fmt: skip
            if stripped:
                judged[0][side] = "cherry !"
            (tmp_path / "annotations.json").write_text(json.dumps(judged))
            right, wrong = (line, (*line, "--strip-think"))[:: -1 if stripped else 1]
            refused = alphapo(*wrong)
            assert refused.code == 2
            assert ("add --strip-think" if stripped else "leave --strip-think out") in refused.fault
            assert alphapo(*right).code == 0, alphapo(*right).err

    def test_judgements_of_other_answers_have_nothing_to_do_with_it(self, files, alphapo, tmp_path) -> None:
        rows = [{**row, "output_1": "x", "output_2": row["output"] + "!", "preference": 1.5, "generator_2": "outputs"}
                for row in json.loads((tmp_path / "outputs.json").read_text())]  # fmt: skip
        (tmp_path / "annotations.json").write_text(json.dumps(rows))
        refused = alphapo("eval", files[0], "--reference", files[1], "--annotations", "annotations.json")
        assert refused.code == 2
        assert "judges other outputs than" in refused.fault
        assert "strip-think" not in refused.fault


@pytest.mark.parametrize("command", [("run",), ("sweep", "alpha", "objective.shape.alpha=0,1")])
@pytest.mark.parametrize("typed", ["--strip-think", "strip_think=true"])
def test_runs_and_sweeps_take_it(command: tuple[str, ...], typed: str, alphapo) -> None:
    ran = alphapo(*command, typed, "--print-config")
    assert ran.code == 0, ran.err
    assert "strip_think: true" in ran.out.splitlines()
    refused = alphapo(*command, "strip_thin=true")
    assert refused.code == 2
    assert "strip_think" in refused.fault

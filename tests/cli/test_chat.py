"""`alphapo chat`, and what commands say at their end."""

from __future__ import annotations

import io
import json
import re

import pytest


@pytest.fixture
def chat(alphapo, monkeypatch):
    """`chat(model, *lines)`: what the conversation printed, line by line."""

    def talk(model, *lines, overrides=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        ran = alphapo("chat", *([str(model)] if model else []), *overrides)
        assert ran.code == 0, ran.err
        return ran

    return talk


def test_the_ids_are_those_of_training(chat, trained):
    recorded = json.loads((trained.path / "prompts.json").read_text())[0]
    (message,) = recorded["prompt"]
    ran = chat(trained.path, message["content"], "/ids")
    answer, ids = ran.out.splitlines()
    assert answer
    assert [int(word) for word in ids.split()] == recorded["ids"]


def test_what_was_said_is_read_again_until_a_new_conversation(chat, trained):
    said = chat(
        trained.path, "name one fruit .", "/ids", "name one fruit .", "/ids", "/new", "name one fruit .", "/ids"
    )
    first, second, third = ([int(w) for w in line.split()] for line in said.out.splitlines()[1::2])
    assert len(second) > len(first)
    assert second[: len(first)] == first
    assert third == first


def test_a_line_that_is_no_text_is_said(chat, trained):
    ran = chat(trained.path, "\udcff hi", "name one fruit .")
    assert "that was no UTF-8 text" in ran.err
    assert len(ran.out.splitlines()) == 1


def test_an_empty_input_and_a_limit(chat, trained):
    assert chat(trained.path).out == ""
    assert (
        "cut by the token limit"
        in chat(trained.path, "name three fruits .", overrides=("generation.max_new_tokens=1",)).err
    )


@pytest.mark.parametrize(("line", "said"), [(("./gone",), "no such directory"), (("seeed=1",), "did you mean 'seed'")])
def test_what_is_refused(line, said, alphapo):
    ran = alphapo("chat", *line)
    assert ran.code == 2
    assert said in ran.fault


@pytest.mark.slow
def test_generate_and_eval_say_what_came_out_and_what_is_next(alphapo, trained, tmp_path):
    made = alphapo("generate", str(trained.path), "generation=transformers", "data.limit=6")
    assert made.code == 0, made.err
    outputs = json.loads((made.path / "model_outputs.json").read_text())
    for row in outputs[:2]:
        assert f"prompt: {row['instruction']}\n" in made.err
    assert re.search(r"verdict: .*n = 6", made.err)
    assert re.search(rf"next: alphapo eval \S*{made.path.name}/model_outputs.json --reference", made.err)
    judged = alphapo(
        "eval", str(trained.path / "samples" / "step-4.json"), "--reference",
        str(trained.path / "samples" / "reference.json"),
    )  # fmt: skip
    assert re.search(r"verdict: .*: win rate \d+ % \[\d+, \d+\], n = 8, against ", judged.err)
    assert re.search(rf"next: alphapo compare \S*{judged.path.name} ", judged.err)

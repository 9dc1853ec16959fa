"""Answers of a real model before its first step and after its last: which, when, and that they are no measurement."""

from __future__ import annotations

import json

import pytest

from tests import tiny
from tests.conftest import run_here


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny.saved_start(tmp_path_factory.mktemp("start"), 24, 6)


def line(start, *more):
    given = [text for text in tiny.line_from(start) if not text.startswith("probe.samples")]
    return ["train", *given, "trainer.max_steps=2", "run.name=run", *more]


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run_here(line(start), folder, folder / "cache")


def answers(run, step):
    return json.loads((run / "samples" / f"step-{step}.json").read_text())


def test_the_same_prompts_before_and_after_and_no_metric_of_them(trained):
    assert trained.code == 0, trained.err
    run = trained.path
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step-0.json", "step-2.json"]
    before, after = answers(run, 0), answers(run, 2)
    assert 1 <= len(before) <= 8
    assert [row["instruction"] for row in before] == [row["instruction"] for row in after]
    assert [row["output"] for row in before] != [row["output"] for row in after]  # it was trained
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any(key.startswith("samples/") for row in rows for key in row)
    files = json.loads((run / "summary.json").read_text())["files"]
    assert {"samples/step-0.json", "samples/step-2.json"} <= set(files)


def test_three_stand_side_by_side_in_the_terminal_and_all_on_the_page(trained):
    before = answers(trained.path, 0)
    assert f"answers before and after, {min(3, len(before))} of {len(before)}" in trained.err
    assert "before training" in trained.err
    assert "at step 2" in trained.err
    assert "alphapo eval" not in trained.err  # eight answers are no evaluation
    html = (trained.path / "report.html").read_text()
    for row in before:
        text = json.dumps(row["instruction"], ensure_ascii=False)[1:-1]
        for char in "<>&":
            text = text.replace(char, f"\\u{ord(char):04x}")
        assert text in html


def test_none_where_none_are_asked_for(start, tmp_path):
    ran = run_here(line(start, "probe.samples=0"), tmp_path, tmp_path / "cache")
    assert ran.code == 0, ran.err
    assert not (ran.path / "samples").exists()
    assert "What the models say" not in (ran.path / "report.html").read_text()


def test_a_model_that_cannot_answer_is_trained_all_the_same(start, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("this architecture keeps no cache")

    monkeypatch.setattr("alphapo_cli.probe.sampled_answers.sample", broken)
    ran = run_here(line(start), tmp_path, tmp_path / "cache")
    assert ran.code == 0, ran.err
    assert ran.err.count("no answers were sampled (RuntimeError: this architecture keeps no cache)") == 1
    assert "probe.samples=0 leaves them out" in ran.err

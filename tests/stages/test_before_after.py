"""Answers of a real model before its first step and after its last: which, when, and that they are no measurement."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from types import SimpleNamespace

import pytest

from alphapo_cli.errors import AlphapoError
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.stages.training.before_after import BeforeAndAfter
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.run_lock import acquire
from alphapo_cli.tracking.tracker import NullTracker
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


def test_prompts_that_cannot_be_made_end_no_training(start, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no header")

    monkeypatch.setattr("alphapo_cli.stages.training.before_after.prompts_of", broken)
    ran = run_here(line(start), tmp_path, tmp_path / "cache")
    assert ran.code == 0, ran.err
    assert ran.err.count("no answers are sampled before and after (ValueError: no header)") == 1
    assert not (ran.path / "samples").exists()


def test_the_next_lines_can_be_typed(trained, alphapo):
    """Also where `alphapo generate` has to be told which prompts: data of one's own, of which the held-out ones are taken."""
    lines = [text.removeprefix("next: ") for text in trained.err.splitlines() if text.startswith("next: ")]
    (generate,) = [text for text in lines if text.startswith("alphapo generate ")]
    printed = alphapo(*shlex.split(generate)[1:], "--print-config", cwd=trained.path.parent.parent)
    assert printed.code == 0, printed.err
    assert "eval.jsonl" in printed.out
    assert "limit: 16" in printed.out


def test_the_same_line_does_what_a_killed_process_had_left(trained, start, alphapo, tmp_path):
    """Killed between its commit and the name of summary.json: the run counts as complete, and is put in order."""
    run = RunDirectory(shutil.copytree(trained.path, tmp_path / "runs" / "run"))
    (lock,) = run.lock.glob("*.done")
    run.summary_file.rename(run.path / f".summary.json.{lock.stem}")
    (run.path / "summary.json").write_text(json.dumps({"state": "running", "step": 0}))
    (run.path / "report.html").unlink()
    for name in ("checkpoints", "best"):
        (run.path / name / "step-2").mkdir(parents=True)
    assert run.state == "complete"
    assert json.loads(alphapo("ls", "--json", "-").out.splitlines()[-1])["entries"][0]["state"] == "complete"
    again = alphapo(*line(start))
    assert (again.code, again.out.splitlines()[1]) == (0, "complete"), again.err
    assert (run.path / "report.html").is_file()
    assert not (run.path / "checkpoints").exists()
    assert not (run.path / "best").exists()
    assert json.loads(run.summary_file.read_text())["state"] == "complete"
    assert not list(run.path.glob(".summary.json.*"))
    assert "next: alphapo chat runs/run" in again.err.splitlines()


def test_checkpoints_of_a_run_that_a_process_works_on_stay(trained, tmp_path):
    run = RunDirectory(shutil.copytree(trained.path, tmp_path / "run"))
    (run.path / "best").mkdir()
    held = acquire(run.lock)
    run.tidy()
    assert (run.path / "best").is_dir()
    held.release()
    run.tidy()
    assert not (run.path / "best").exists()


def test_wandb_is_told_one_end_where_the_result_cannot_be_written(start, tmp_path, monkeypatch):
    """It keeps the first that it is told, so that must not be the one which failed."""
    told = []

    class Told(NullTracker):
        def finish(self, summary, exit_code):
            told.append((summary["state"], exit_code))

    def refusing(path, text):
        if path.name.startswith(".summary.json") and '"state": "complete"' in text:
            raise OSError(errno.EIO, "broken disk")
        write_atomic(path, text)

    monkeypatch.setattr("alphapo_cli.stages.training.session.run_tracker", lambda *_: Told())
    monkeypatch.setattr("alphapo_cli.storage.run_lock.write_atomic", refusing)
    ran = run_here(line(start, "probe.samples=0"), tmp_path, tmp_path / "cache")
    assert ran.code == 1
    assert told == [("failed", 1)]
    assert json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())["state"] == "failed"


def test_processes_that_share_a_model_stop_where_one_of_them_cannot_sample():
    """Its peers wait for it in a collective operation; at the end, when the model is saved, nothing is lost but answers."""
    said: list[str] = []

    class NoRoom:
        prompts, sampling = SimpleNamespace(ids=[[1]]), SimpleNamespace(max_new_tokens=4)

        def write_texts(self, lm, step):
            raise RuntimeError("out of memory")

    made = BeforeAndAfter(NoRoom(), said.append, together=True)
    with pytest.raises(AlphapoError, match=r"out of memory.*probe\.samples=0"):
        made.sample(None, 0)
    made.sample(None, 2)
    assert "no answers were sampled (RuntimeError: out of memory)" in said[-1]
    BeforeAndAfter(NoRoom(), said.append).sample(None, 0)  # alone it costs no training

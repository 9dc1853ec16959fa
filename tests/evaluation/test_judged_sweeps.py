"""Sweeps whose cells are evaluated: what is found before training, what a failed evaluation leaves, what is not mixed."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import pytest

ALPHA = "objective.shape.alpha"
ANSWERS = ("generation=transformers", "generation.max_new_tokens=4", "prompts.limit=4", "statistics.bootstrap=10")
OPENAI = ("judge=openai", "judge.model=a-judge", "judge.api_key_env=null", "judge.attempts=1", "judge.wait=0")


@pytest.fixture
def line(tiny):
    cell = ("trainer.max_steps=1", "probe.samples=0", "launcher.workers=0")
    return ("sweep", "alpha", f"{ALPHA}=0,1", *tiny, *cell, *ANSWERS)


def cells_of(ran):
    return {c["overrides"][0]: c for c in json.loads((ran.path / "summary.json").read_text())["cells"]}


@pytest.fixture
def nobody():
    """A base URL where nobody listens: the port is taken and does not answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"judge.base_url=http://127.0.0.1:{taken.getsockname()[1]}/v1"


class TestBeforeTraining:
    def refused(self, ran, tmp_path):
        assert ran.code == 2, ran.err
        assert not list(tmp_path.glob("runs/**/config.yaml"))  # neither a cell nor a reference was begun
        return ran.err.splitlines()[-1]

    def test_a_judge_that_does_not_answer(self, alphapo, line, nobody, tmp_path):
        assert "cannot be reached" in self.refused(alphapo(*line, *OPENAI, nobody), tmp_path)

    @pytest.mark.parametrize(("texts", "says"), [
        (["judge.max_cost=1"], "no price is known for a-judge"),
        (["judge.prompt_file=gone.txt"], "gone.txt"),
        (["judge=vllm", "judge.model=./gone"], "gone"),
    ])  # fmt: skip
    def test_what_the_judge_lacks(self, texts, says, alphapo, line, tmp_path, monkeypatch):
        from tests.evaluation.judge_server import judged, serve
        from tests.evaluation.test_eval_vllm import FAKE

        monkeypatch.syspath_prepend(FAKE)

        with serve(lambda number, body: judged()) as server:
            ran = alphapo(*line, *OPENAI, f"judge.base_url={server.url}", *texts)
        assert says in self.refused(ran, tmp_path)
        assert server.seen == []

    def test_a_reference_without_answers_to_the_prompts(self, alphapo, line, tmp_path):
        row = {"instruction": "something else", "output": "x", "generator": "g", "dataset": "d"}
        (tmp_path / "reference.json").write_text(json.dumps([row]))
        said = self.refused(alphapo(*line, "judge=glassbox", "--reference", "reference.json"), tmp_path)
        assert "--reference reference.json: has no answer to 4 of 4 prompts" in said


@pytest.mark.slow
def test_a_trained_cell_says_why_it_was_not_evaluated(alphapo, line):
    from tests.evaluation.judge_server import error, judged, serve

    with serve(lambda number, body: error(400, "no such model")) as server:
        ran = alphapo(*line, *OPENAI, f"judge.base_url={server.url}")
        assert ran.code == 1
        for cell in cells_of(ran).values():
            assert cell["state"] == "complete"
            assert cell["reason"].startswith("trained, but not evaluated: ")
            assert "no such model" in cell["reason"]
        assert ran.out.count("trained, not evaluated") == 2
        looked = alphapo(*line, *OPENAI, f"judge.base_url={server.url}", "--status")
        assert looked.out.count("trained, but not evaluated") == 2
        assert "no such model" in (ran.path / "report" / "cells.csv").read_text()
        asked = len(server.seen)
        left = alphapo(*line, *OPENAI, f"judge.base_url={server.url}", "--no-retry")
        assert (left.code, len(server.seen)) == (0, asked)  # nothing of this line failed
        assert left.out.count("trained, not evaluated") == 2
        url = server.url
    with serve(lambda number, body: judged(), port=int(url.split(":")[2].split("/")[0])):
        again = alphapo(*line, *OPENAI, f"judge.base_url={url}")
    assert again.code == 0, again.err
    assert {(c["state"], c["reason"], "eval/win_rate" in c["metrics"]) for c in cells_of(again).values()} == {
        ("complete", None, True)
    }


@pytest.mark.slow
def test_outcomes_under_other_settings_are_not_mixed(alphapo, line):
    """A second line evaluates one of two cells at another temperature: the other cell's rate is not compared with it."""
    assert alphapo(*line, "judge=glassbox").code == 0
    one = [text.replace("=0,1", "=1") for text in line]
    second = alphapo(*one, "judge=glassbox", "generation.temperature=0.2", "prompts.limit=5")
    assert second.code == 0, second.err
    (note,) = [text for text in second.err.splitlines() if "evaluated under other settings" in text]
    assert "differs in: generation.temperature, prompts.limit)" in note
    cells = cells_of(second)
    assert "eval/win_rate" in cells[f"{ALPHA}=1"]["metrics"]
    assert "eval/win_rate" not in cells[f"{ALPHA}=0"]["metrics"]
    assert "not evaluated" in cells[f"{ALPHA}=0"]["reason"]
    # The first line again takes up its own evaluations, which are still there.
    first = alphapo(*line, "judge=glassbox")
    assert {"eval/win_rate" in c["metrics"] for c in cells_of(first).values()} == {True}


def test_a_reference_that_another_process_makes_is_waited_for(tmp_path, shared_cache, monkeypatch, capsys):
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import Sources, read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages import train_generate_evaluate
    from alphapo_cli.stages.plan import make_plan
    from alphapo_cli.stages.train_generate_evaluate import make_reference
    from alphapo_cli.storage.jsonl import LineLog

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALPHAPO_CACHE", str(shared_cache))
    sources = Sources(None)
    cfg = compose("train", TrainConfig, [read_line(["probe.samples=0"], sources)], sources)
    plan = make_plan(["generation=transformers", "generation.max_new_tokens=4", "data.limit=2"], [], sources)
    made = make_reference(plan, cfg)
    # As it is while the other process is at work: begun, not complete, its log held.
    made.unlink()
    (made.parent / "summary.json").unlink()
    held, seen = threading.Event(), threading.Event()

    def other():
        with LineLog(made.parent / "partial.jsonl", "alphapo generate"):
            held.set()
            seen.wait(60)

    def wait(seconds):
        assert seconds > 0
        looks.append(seconds)
        seen.set()
        process.join(60)

    looks: list[float] = []
    monkeypatch.setattr(train_generate_evaluate, "time", SimpleNamespace(sleep=wait))
    process = threading.Thread(target=other)
    process.start()
    held.wait()
    assert make_reference(plan, cfg) == made
    assert len(looks) == 1
    assert len(json.loads(made.read_text())) == 2
    assert capsys.readouterr().err.count("waiting for the reference answers") == 1


def test_interrupted_cells_are_no_failures(alphapo, tiny, monkeypatch):
    """After --fail-fast: one cell failed, one saved a checkpoint, one lost its worker."""
    from alphapo_cli.launch import run as stage
    from alphapo_cli.launch.launchers.launcher import CellJob, Ended

    def ended(grid, cells, directory, *rest):
        directory.write(grid)
        states = (("failed", "the loss is nan"), ("interrupted", "stopped"), ("lost", "the worker died"))
        jobs = [CellJob("", "", cell.id, cell.overrides, cell.cfg) for cell in cells]
        return [Ended(job, *state) for job, state in zip(jobs, states, strict=True)]

    monkeypatch.setattr(stage, "_run_cells", ended)
    ran = alphapo("sweep", "alpha", f"{ALPHA}=0,1,2", *tiny, "launcher.workers=0", "--fail-fast")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == (
        "alphapo: 1 of 3 cells failed (2 interrupted, which the same line continues), "
        f"first {ALPHA}=0: the loss is nan"
    )  # fmt: skip


@pytest.mark.slurm  # test-all installs submitit
def test_slurms_dry_run_needs_no_slurm(alphapo, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    line = ("sweep", "alpha", f"{ALPHA}=0,1", "launcher=slurm", "launcher.partition=gpu", "launcher.time=90")
    ran = alphapo(*line, "--dry-run", env={"PATH": str(tmp_path)})
    assert ran.code == 0, ran.err
    for setting in ("--array=0-1%2", "--partition=gpu", "--time=90"):
        assert f"#SBATCH {setting}\n" in ran.out
    assert list(tmp_path.iterdir()) == []
    really = alphapo(*line, env={"PATH": str(tmp_path)})
    assert (really.code, "no sbatch" in really.err) == (2, True)


@pytest.mark.parametrize("command", [("run",), ("sweep", "alpha")])
def test_print_config_shows_all_stages(command, alphapo):
    import yaml

    ran = alphapo(*command, "generation.temperature=0.3", "prompts.limit=7", "judge=glassbox", "--print-config")
    assert ran.code == 0, ran.err
    shown = yaml.safe_load(ran.out)
    assert (shown["generation"]["temperature"], shown["prompts"]["limit"]) == (0.3, 7)
    assert (shown["judge"]["name"], shown["statistics"]["confidence"]) == ("glassbox", 0.95)
    assert shown["data"]["limit"] is None

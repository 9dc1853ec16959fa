"""`alphapo run` and sweeps with a judge: three stages in one line, each done once."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from tests import wandb_file

ANSWERS = ("generation.max_new_tokens=12", "prompts.limit=24")
ON_TRANSFORMERS = ("generation=transformers", *ANSWERS)


def load(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def first(tmp_path_factory, shared_cache):
    from tests.conftest import TINY, run_here

    folder = tmp_path_factory.mktemp("run")
    ran = run_here(("run", *TINY, *ON_TRANSFORMERS, "--json", "result.json"), folder, shared_cache)
    assert ran.code == 0, ran.err
    return ran


class TestRun:
    def test_what_it_leaves(self, first):
        result = load(first.path.parent.parent / "result.json")
        assert result["path"] == str(first.path)
        outcome = load(first.path / "outcome.json")
        answers = load(first.path.parent / result["generate"] / "model_outputs.json")
        results = load(first.path.parent / result["eval"] / "results.json")
        assert len(answers) == results["n_total"] == 24
        assert {row["generator"] for row in answers} == {first.path.name}
        assert outcome["metrics"]["eval/win_rate"] == results["win_rate"] / 100
        assert result["metrics"]["eval/win_rate"] == results["win_rate"] / 100
        assert (
            result["metrics"]["displacement/chosen"]
            == load(first.path / "summary.json")["metrics"]["displacement/chosen"]
        )

    def test_the_result_joins_the_curves_in_wandb(self, first):
        (file,) = wandb_file.live_files(first.path)
        run = wandb_file.read(file)
        assert [row["_step"] for row in run.history if "displacement/chosen" in row] == [0, 2, 4]
        (judged,) = [row for row in run.history if "eval/win_rate" in row]
        assert judged["_step"] == 4
        assert judged["eval/win_rate"] == load(first.path / "outcome.json")["metrics"]["eval/win_rate"]

    def test_the_same_line_does_nothing(self, first, shared_cache, snapshot):
        from tests.conftest import TINY, run_here

        folder = first.path.parent.parent
        before = snapshot(folder)
        again = run_here(("run", *TINY, *ON_TRANSFORMERS), folder, shared_cache)
        assert (again.code, again.out.splitlines()) == (0, [str(first.path), "complete"])
        assert snapshot(folder) == before

    def test_an_outcome_of_another_training_is_none(self, first, tmp_path):
        """As a process leaves it whose run was trained anew by another one while it evaluated."""
        from alphapo_cli.runs.directory import RunDirectory
        from alphapo_cli.storage import checksums

        copy = RunDirectory(Path(shutil.copytree(first.path, tmp_path / "run")))
        assert copy.outcome()["metrics"]
        summary = load(copy.summary_file)
        summary["metrics"]["displacement/chosen"] += 1e-6
        copy.summary_file.write_text(json.dumps(checksums.sealed(summary)))
        assert copy.outcome() == {}

    def test_another_judge_setting_repeats_neither_training_nor_generation(self, first, shared_cache, snapshot):
        from tests.conftest import TINY, run_here

        folder = first.path.parent.parent
        answers = load(first.path / "outcome.json")["generate"]
        before = snapshot(folder)
        again = run_here(("run", *TINY, *ON_TRANSFORMERS, "statistics.bootstrap=10"), folder, shared_cache)
        assert again.code == 0, again.err
        assert load(first.path / "outcome.json")["generate"] == answers
        changed = {
            str(k)
            for k in snapshot(folder).keys() ^ before.keys()
            | {k for k, v in before.items() if snapshot(folder).get(k) != v}
        }
        assert not any("model_outputs" in name or "metrics.jsonl" in name or "safetensors" in name for name in changed)

    def test_removing_thoughts_repeats_neither_and_is_another_evaluation(self, first, shared_cache):
        from tests.conftest import TINY, run_here

        folder = first.path.parent.parent
        before = load(first.path / "outcome.json")
        again = run_here(("run", *TINY, *ON_TRANSFORMERS, "--strip-think"), folder, shared_cache)
        assert again.code == 0, again.err
        after = load(first.path / "outcome.json")
        assert (after["generate"], after["key"] == before["key"]) == (before["generate"], False)
        assert load(Path(after["eval"]) / "results.json")["answers"]["strip_think"] is True


def test_data_of_ones_own_need_prompts_and_a_judge_of_their_own(alphapo, scratch, pairs, tmp_path):
    """A win rate on the embedded world's instructions says nothing of a model that was trained on something else."""
    own = [
        f"data.path={pairs['plain']}",
        "data=jsonl",
        f"model.path={scratch.path}",
        "trainer=small",
        "generation=transformers",
    ]
    ran = alphapo("run", *own)
    assert ran.code == 2
    assert f"type prompts=jsonl prompts.path={pairs['plain']} (its prompts)" in ran.fault
    ran = alphapo("run", *own, "prompts=jsonl", f"prompts.path={pairs['plain']}")
    assert ran.code == 2
    assert "judge glassbox: not an instruction of the embedded world" in ran.fault
    assert not (tmp_path / "runs").exists()
    evaluation = [f"data.eval_path={pairs['message']}"]
    assert f"prompts.path={pairs['message']}" in alphapo("run", *own, *evaluation).fault


def test_the_embedded_worlds_prompts_may_be_asked_for(scratch, pairs):
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import Sources, read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.plan import make_plan

    where = Sources()
    cfg = compose(
        "train",
        TrainConfig,
        [read_line([f"data.path={pairs['plain']}", "data=jsonl", "model=from_scratch"], where)],
        where,
    )
    make_plan(["data=glassbox", "generation=transformers"], [], where).check_inputs(cfg)


@pytest.mark.slow
def test_a_reference_of_ones_own(alphapo, tiny, tmp_path):
    """Against its own answers every prompt is a draw."""
    line = ["run", *tiny, *ON_TRANSFORMERS]
    first = alphapo(*line)
    assert first.code == 0, first.err
    own = load(first.path / "outcome.json")["generate"] + "/model_outputs.json"
    second = alphapo(*line, "--reference", own)
    assert second.code == 0, second.err
    assert load(second.path / "outcome.json")["metrics"]["eval/win_rate"] == 0.5


class TestBadInput:
    @pytest.mark.parametrize(("texts", "says"), [
        (["generation.temprature=1"], "did you mean 'generation.temperature'"),
        (["generation.alpha=1"], "unknown key 'generation.alpha'; did you mean 'objective.shape.alpha'"),
        (["top_p=1"], "unknown key 'top_p'; did you mean 'generation.top_p'?"),
        (["generation.max_cost=1"], "did you mean 'judge.max_cost'?"),
        (["prompts.promt_column=x"], "unknown key 'prompts.promt_column'; did you mean 'prompts.prompt_column'? (keys of prompts: "),
        (["judge=openay"], "did you mean 'openai'"),
        (["prompts=nowhere"], "no such data"),
        (["--reference", "missing.json"], "--reference missing.json: no such file"),
        (["model=from_scratch", "data=jsonl", "data.path=x.jsonl"], "give --reference"),
        (["model.path=m"], "model.path=m: on which data? give data=..."),
        (["data=jsonl", "data.path=x.jsonl"], "data=jsonl: which model? give model.path=DIRECTORY"),
    ])  # fmt: skip
    @pytest.mark.parametrize("command", [("run",), ("sweep", "alpha", "judge=glassbox")])
    def test_is_found_before_training(self, command, texts, says, alphapo, tmp_path):
        ran = alphapo(*command, *texts)
        assert ran.code == 2
        assert says in ran.fault
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_with_a_judge_takes_its_win_rate_as_the_outcome(alphapo, tiny):
    line = ("sweep", "alpha", "objective.shape.alpha=0,1", *tiny, "launcher.workers=0")
    plain = alphapo(*line, "probe.samples=0")
    assert plain.code == 0, plain.err
    judged = alphapo(*line, "probe.samples=0", *ON_TRANSFORMERS, "judge=glassbox")
    assert (judged.code, judged.path) == (0, plain.path), judged.err
    summary = load(judged.path / "summary.json")
    rates = [cell["metrics"]["eval/win_rate"] for cell in summary["cells"]]
    assert (summary["best"]["metric"], summary["best"]["value"]) == ("eval/win_rate", max(rates))
    assert "win rate: by the judge, against the reference, n = 24 prompts" in " ".join(judged.out.split())
    assert "Best win rate by the judge: " in judged.out
    assert ", n = 24 prompts, at objective.shape.alpha=" in judged.out
    for cell in summary["cells"]:
        folder = judged.path / "cells" / cell["id"]
        assert load(folder / "eval" / "results.json")["win_rate"] == 100 * cell["metrics"]["eval/win_rate"]


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_run_on_real_vllm(alphapo, tiny):
    ran = alphapo("run", *tiny, *ANSWERS, "generation=vllm")
    assert ran.code == 0, ran.err
    outcome = load(ran.path / "outcome.json")
    assert load(ran.path.parent / outcome["generate"] / "summary.json")["backend"] == "vllm"
    assert outcome["metrics"]["eval/n_total"] == 24


def test_contents_of_files_decide_whether_the_outcome_stands(tmp_path, monkeypatch):
    from alphapo_cli.config.overrides import Sources
    from alphapo_cli.stages.plan import make_plan

    monkeypatch.chdir(tmp_path)
    names = ("prompts.jsonl", "template.txt", "difficulty.csv", "answers/model_outputs.json")
    (tmp_path / "answers").mkdir()
    for name in names:
        (tmp_path / name).write_text("one")

    def key():
        line = (["data=jsonl", "data.path=prompts.jsonl"], ["judge.prompt_file=template.txt"])
        files = {"reference": tmp_path / "answers", "difficulty": tmp_path / "difficulty.csv"}
        return make_plan(*line, Sources(None), **files).key

    before = key()
    assert key() == before
    for name in names:
        (tmp_path / name).write_text("two")
        assert key() != before, name
        (tmp_path / name).write_text("one")
    assert key() == before


@pytest.mark.parametrize(("texts", "says"), [
    (["judge=replay"], "--judge replay needs --annotations"),
    (["judge=vllm"], "needs judge.model"),
    (["judge=openai", "judge.model=m", "judge.api_key_env=sk-se-cret"], "takes the name of an environment variable"),
    (["judge=openai", "judge.model=m", "judge.api_key_env=NO_KEY_HERE"], "environment variable NO_KEY_HERE"),
])  # fmt: skip
def test_what_the_judge_lacks_is_found_before_training(texts, says, alphapo, tiny, tmp_path):
    ran = alphapo("run", *tiny, *ON_TRANSFORMERS, *texts)
    assert ran.code == 2
    assert says in ran.fault
    assert "sk-se-cret" not in ran.err
    assert not list(tmp_path.glob("runs/*/model"))


@pytest.mark.slow
def test_another_setting_of_generation_evaluates_the_cells_anew_beside_the_first(alphapo, tiny):
    line = ("sweep", "alpha", "objective.shape.alpha=0,1", *tiny, "launcher.workers=0", "probe.samples=0")
    first = alphapo(*line, *ON_TRANSFORMERS, "judge=glassbox")
    cooler = (*line, *ON_TRANSFORMERS, "judge=glassbox", "generation.temperature=0.2")
    looked = alphapo(*cooler, "--dry-run")
    assert "not evaluated" in " ".join(looked.out.split())
    second = alphapo(*cooler)
    assert (first.code, second.code) == (0, 0), second.err
    assert second.path == first.path
    for cell in load(second.path / "summary.json")["cells"]:
        folder = second.path / "cells" / cell["id"]
        (anew,) = folder.glob("eval-*")
        assert (folder / "eval" / "results.json").is_file()
        assert load(anew / "results.json")["win_rate"] == 100 * cell["metrics"]["eval/win_rate"]


def test_a_file_for_the_judge_is_never_swallowed(alphapo, tiny):
    ran = alphapo("sweep", "alpha", *tiny, "--annotations", "missing.json")
    assert ran.code == 2
    assert "--annotations" in ran.fault


@pytest.mark.slow
def test_the_reference_answers_are_drawn_as_the_runs_own(first, alphapo, tiny, tmp_path):
    """The same system prompt on both sides: a win rate against answers without it would measure the prompt."""
    model = shutil.copytree(first.path / "model", tmp_path / "base")
    template = model / "chat_template.jinja"
    refusal = "raise_exception('the embedded world knows the roles user and assistant only')"
    assert refusal in template.read_text()
    template.write_text(template.read_text().replace(refusal, "' <user> ' + message['content']"))
    ran = alphapo(
        "run", *tiny, *ON_TRANSFORMERS, f"model.path={model}", "data=glassbox", "trainer=glassbox", "data.system=answer",
        "data.max_unknown=1", "model.dtype=bfloat16",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    own = Path(load(ran.path / "outcome.json")["generate"])
    (reference,) = [p for p in own.parent.glob("generate-*") if p != own]
    first, second = (load(p / "manifest.json")["identity"] for p in (own, reference))
    assert first["prompts"] == second["prompts"]
    assert first["model"]["dtype"] == second["model"]["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_kill_before_the_outcome_is_in_wandb_does_not_keep_it_out(alphapo, monkeypatch):
    from alphapo_cli.stages import train_generate_evaluate
    from tests.conftest import TINY

    line = ("run", *TINY, *ON_TRANSFORMERS)
    with monkeypatch.context() as killed:

        def dies(*_):
            raise KeyboardInterrupt

        killed.setattr(train_generate_evaluate, "join_tracking", dies)
        assert alphapo(*line).code == 130
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    (file,) = wandb_file.live_files(ran.path)
    assert [row["_step"] for row in wandb_file.read(file).history if "eval/win_rate" in row] == [4]

"""`alphapo validate`: what a command would refuse is refused, and nothing is run."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("line", "said", "then"),
    [
        (("objective=dpo",), "objective 'dpo'", "alphapo train objective=dpo"),
        (("alpha",), "13 cells over objective.shape.alpha", "alphapo sweep alpha"),
        (("seed=0,1", "objective=simpo,dpo"), "4 cells", "alphapo sweep seed=0,1 objective=simpo,dpo"),
        (("judge=openai", "judge.model=x"), "of generation and of evaluation", "alphapo run judge=openai"),
    ],
)
def test_what_is_valid(line, said, then, alphapo, tmp_path):
    ran = alphapo("validate", *line)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("valid: ")
    assert said in ran.out
    assert f"next: {then}" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choice", ["objective=mine", "objective/link=mine", "judge=mine"])
def test_the_file_of_a_group_is_named_as_such(choice, alphapo, tmp_path):
    file = tmp_path / "own" / choice.partition("=")[0] / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("name: logistic\n")
    ran = alphapo("validate", str(file), "--config-dir", "own")
    assert ran.code == 2
    assert f"if it is the file of a group: alphapo validate {choice} --config-dir own" in ran.fault


@pytest.mark.slow
def test_files(alphapo, trained, tmp_path):
    (tmp_path / "own.yaml").write_text("objective: dpo\n")
    (tmp_path / "grid.yaml").write_text("base: [objective=dpo]\ngrid: {seed: '0,1'}\n")
    assert "alphapo train --config own.yaml" in alphapo("validate", "own.yaml").err
    assert "2 cells over seed" in alphapo("validate", "grid.yaml").out
    assert alphapo("validate", str(trained.path / "config.yaml")).code == 0


def test_the_next_line_is_quoted_and_whole(alphapo, tmp_path):
    (tmp_path / "own").mkdir()
    ran = alphapo("validate", "run.name=two words", "eval.at=[0.5,1]", "--config-dir", "own")
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[-1] == "next: alphapo run 'run.name=two words' 'eval.at=[0.5,1]' --config-dir own"


def test_a_file_of_a_sweep_is_checked_as_the_sweep_checks_it(alphapo, tmp_path):
    """Also where the file alone names what comes after training."""
    (tmp_path / "own.yaml").write_text("objective: dpo\neval: {at: [0.5, 1]}\n")
    asked = alphapo("validate", "own.yaml", "seed=0,1", "--for", "sweep")
    swept = alphapo("sweep", "--config", "own.yaml", "seed=0,1")
    assert (asked.code, swept.code) == (2, 2)
    assert "training does not keep the models of 0.5" in asked.fault
    assert asked.fault == swept.fault


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("objective.bta=1",), "did you mean 'objective.beta'?"),
        (("trainer.learning_rate=-1", "probe.batch_size=0"), "probe.batch_size=0: must be at least 1"),
        (("model.path=./gone", "data=glassbox"), "model.path=./gone: no such directory"),
        (("model=from_scratch", "data=jsonl", "data.path=gone.jsonl"), "gone.jsonl: no such file"),
        (("alpah",), "did you mean 'alpha'?"),
        (("objective=sft", "objective/weight=wpo"), "objective"),
        (("--for", "trian", "seed=1"), "no such command"),
        (("gone.yaml",), "gone.yaml"),
    ],
)
def test_what_is_refused(line, said, alphapo):
    ran = alphapo("validate", *line)
    assert ran.code == 2
    assert said in ran.fault

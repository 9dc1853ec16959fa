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


@pytest.mark.slow
def test_files(alphapo, trained, tmp_path):
    (tmp_path / "own.yaml").write_text("objective: dpo\n")
    (tmp_path / "grid.yaml").write_text("base: [objective=dpo]\ngrid: {seed: '0,1'}\n")
    assert "alphapo train --config own.yaml" in alphapo("validate", "own.yaml").err
    assert "2 cells over seed" in alphapo("validate", "grid.yaml").out
    assert alphapo("validate", str(trained.path / "config.yaml")).code == 0


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

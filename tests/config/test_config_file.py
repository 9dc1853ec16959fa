"""--config FILE: what --print-config prints comes back the same, and the command line wins over it."""

from __future__ import annotations

import pytest
import yaml


@pytest.mark.parametrize(
    "line",
    [
        ("train", "objective=dpo", "objective.beta=0.05", "run.name=a b"),
        ("train", "objective=ipo", "objective/shape=power", "objective.shape.alpha=0.5", "seed=3"),
        ("train", "objective=rpo_sft", "objective.gamma=0.5"),
        ("train", "objective/schedule=linear", "objective.schedule.start=-0.5", "objective.schedule.end=1"),
        ("train", "model=from_scratch", "data=jsonl", "data.path=[a.jsonl,b.jsonl]", "data.weights=[0.7,0.3]"),
        ("train", "model.path=m", "data=jsonl", "data.path=x", "data.chat_template_kwargs={enable_thinking:false}"),
        ("train", "experiment=alphapo_gemma2"),
        ("run", "objective=simpo", "judge=openai", "judge.model=gpt-x", "generation.temperature=0.5"),
        ("generate", "generation.temperature=0.3", "data=jsonl", "data.path=x.jsonl"),
        ("sweep", "alpha", "launcher=slurm", "launcher.partition=gpu"),
        ("eval", "o.json", "judge=vllm", "judge.model=j", "statistics.bootstrap=10"),
        ("eval", "judge=vllm", "judge.model=j"),  # whose outputs are not needed to print settings
        ("loss", "rows.jsonl", "objective=orpo"),
        ("loss", "objective=orpo"),
        ("score", "rows.jsonl", "scorer=length"),
        ("pairs", "recipe=simpo", "data=jsonl", "data.path=x.jsonl"),
    ],
    ids=lambda line: " ".join(line[:3]),
)
def test_what_is_printed_comes_back(line, alphapo, tmp_path):
    printed = alphapo(*line, "--print-config").out
    (tmp_path / "printed.yaml").write_text(printed)
    bare = [line[0], *(text for text in line[1:2] if "=" not in text)]
    again = alphapo(*bare, "--config", "printed.yaml", "--print-config")
    assert (again.code, again.err) == (0, "")
    assert again.out == printed


@pytest.fixture
def settings(alphapo, tmp_path):
    """`settings(text, *overrides)`: the configuration of a training with that file, or the one line of a refusal."""

    def compose(text, *overrides, command="train"):
        (tmp_path / "own.yaml").write_text(text)
        ran = alphapo(command, "--config", "own.yaml", *overrides, "--print-config")
        return yaml.safe_load(ran.out) if ran.code == 0 else (ran.code, ran.fault)

    return compose


def test_code_that_runs_is_not_taken_from_the_file(alphapo, tmp_path):
    (tmp_path / "own.yaml").write_text('scorer: {name: rule, rule: "python x.py"}\n')
    ran = alphapo("score", "rows.jsonl", "--config", "own.yaml")
    assert (ran.code, "scorer.rule: code that runs is named on the command line" in ran.fault) == (2, True)


def test_a_recipe_beside_the_file_is_refused(alphapo, tmp_path):
    (tmp_path / "own.yaml").write_text("thin: {cut: keep}\n")
    ran = alphapo("pairs", "recipe=simpo", "--config", "own.yaml")
    assert (ran.code, "both hold settings of all groups" in ran.fault) == (2, True)


@pytest.mark.parametrize("line", [("loss",), ("loss", "objective=dpo"), ("eval", "judge=openai", "judge.model=m")])
def test_without_its_file_a_command_says_which_one_is_missing(line, alphapo):
    ran = alphapo(*line)
    assert ran.code == 2
    assert "which pairs?" in ran.fault or "OUTPUTS.json is missing" in ran.fault


class TestPrecedence:
    def test_a_part_of_the_settings(self, settings):
        found = settings("objective: dpo\nobjective.beta: 0.3\ntrainer: {learning_rate: 1e-4}\n")
        assert (found["objective"]["name"], found["objective"]["beta"]) == ("dpo", 0.3)
        assert found["objective"]["score"]["name"] == "ratio_sum"
        assert found["trainer"]["learning_rate"] == 1e-4

    def test_the_line_wins(self, settings):
        assert settings("objective: {beta: 3}\nseed: 5\n", "seed=7")["seed"] == 7

    def test_an_objective_of_the_line_brings_its_own_settings(self, settings, alphapo):
        printed = alphapo("train", "objective=alphapo", "objective.beta=9", "seed=4", "--print-config").out
        found = settings(printed, "objective=dpo")
        assert (found["objective"]["beta"], found["objective"]["shape"]["name"], found["seed"]) == (0.1, "identity", 4)

    @pytest.mark.slow
    def test_a_part_of_the_line_brings_its_own_parameters(self, settings, alphapo):
        printed = alphapo("train", "objective.shape.alpha=2", "objective.beta=9", "--print-config").out
        found = settings(printed, "objective/shape=tanh")
        assert (found["objective"]["shape"]["name"], found["objective"]["beta"]) == ("tanh", 9)
        assert "alpha" not in found["objective"]["shape"]

    def test_gamma_of_the_line_replaces_the_ratio_of_the_file(self, settings):
        found = settings("objective: {gamma_beta_ratio: 0.3}\n", "objective.gamma=1")["objective"]
        assert (found["gamma"], found["gamma_beta_ratio"]) == (1, None)

    def test_a_sweep_replaces_what_it_sweeps(self, alphapo, tmp_path):
        (tmp_path / "own.yaml").write_text(alphapo("train", "objective=ipo", "seed=9", "--print-config").out)
        ran = alphapo("sweep", "--config", "own.yaml", "objective=simpo,dpo", "--print-config")
        assert ran.out.startswith("# 2 cells over objective: objective=simpo; objective=dpo")
        found = yaml.safe_load(ran.out)
        assert (found["objective"]["name"], found["objective"]["score"]["name"], found["seed"]) == ("simpo", "mean", 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "seed: 1\nobjective:\n  bta: 3\n",
            "own.yaml: line 3: unknown key 'objective.bta'; did you mean 'objective.beta'",
        ),
        ("seed: 1\ntrainer: {learning_rate: -1}\n", "own.yaml: line 2: trainer.learning_rate=-1"),
        ("seed: often\n", "own.yaml: line 1: seed=often: must be a whole number"),
        ("objective: dpoo\n", "own.yaml: line 1: objective: no such objective 'dpoo'; did you mean 'dpo'"),
        (
            "objective:\n  shape: {name: powr}\n",
            "own.yaml: line 2: objective.shape.name: no such objective/shape 'powr'",
        ),
        ("seed: 1\nseed: 2\n", "line 2: seed a second time, after line 1"),
        ("defaults: [dpo]\n", "a defaults list is for files of --config-dir"),
        ("- seed\n", "must hold settings"),
        ("seed: [1\n", "not a YAML file"),
    ],
)
def test_what_is_refused(text, said, settings):
    code, fault = settings(text)
    assert code == 2
    assert said in fault


def test_a_file_that_is_not_there(alphapo):
    ran = alphapo("train", "--config", "gone.yaml")
    assert (ran.code, ran.fault) == (2, "alphapo: --config gone.yaml: cannot be read (No such file or directory)")


def test_beside_an_experiment(settings):
    code, fault = settings("seed: 1\n", "experiment=alphapo_gemma2")
    assert code == 2
    assert "give one" in fault


def test_the_worlds_settings_are_not_for_other_data(settings, alphapo):
    """Its learning rate, a thousand times the published one, would ruin a model of the user's."""
    printed = alphapo("train", "--print-config").out
    mine = ("model.path=m", "data=jsonl", "data.path=x")
    code, fault = settings(printed, *mine)
    assert code == 2
    assert "type trainer=default probe=default too" in fault
    assert settings(printed, *mine, "trainer=default", "probe=default")["trainer"]["learning_rate"] == 7e-7

"""From a command line to a configuration: defaults, who wins over whom, gamma, types, and a user's own YAML."""

from __future__ import annotations

import math
import re

import pytest

from alphapo_cli.config.compose import compose, to_yaml
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.runs.identity import identity, run_name


def composed(*layers, sources=None):
    """Each layer a line of overrides, the last one the command line."""
    sources = sources or Sources()
    return compose("train", TrainConfig, [read_line(layer.split(), sources) for layer in layers], sources)


@pytest.fixture
def own(tmp_path):
    """A --config-dir; `own("objective/mine", text)` adds a YAML to it."""

    def add(name, text):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return Sources(tmp_path)

    return add


def test_without_overrides_it_is_alphapo_in_the_embedded_world():
    cfg = composed("")
    assert (cfg.objective.name, cfg.model.source, cfg.data.source) == ("alphapo", "glassbox", "glassbox")
    # The published settings of Mistral-7B-Instruct, as conf/objective/alphapo.yaml says.
    assert (cfg.objective.beta, cfg.objective.gamma_beta_ratio, cfg.objective.gamma) == (2.5, 0.1, None)
    assert cfg.objective.shape == {"name": "power", "alpha": 0.25, "convention": "paper"}
    assert cfg.tracking.mode == "offline"
    # The world brings settings for its small model; the published learning rate would not move it.
    assert cfg.trainer.learning_rate == 8e-4


def test_other_data_brings_the_settings_of_large_models():
    assert composed("data=hub model.path=m").trainer.learning_rate < 1e-5
    assert composed("data=hub model.path=m trainer=small").trainer.learning_rate == 5e-4


PUBLISHED = {
    # name: score, shape, link, beta, margin over beta, weight of the NLL
    "alphapo": ("mean", "power", "logistic", 2.5, 0.1, 0.0),
    "alphapo_ratio": ("ratio_sum", "power", "logistic", 0.1, None, 0.0),
    "simpo": ("mean", "identity", "logistic", 2.5, 0.1, 0.0),
    "dpo": ("ratio_sum", "identity", "logistic", 0.1, None, 0.0),
    "ipo": ("ratio_mean", "identity", "squared", 0.1, None, 0.0),
    "cpo": ("sum", "identity", "logistic", 0.1, None, 1.0),
    "sft": ("mean", "identity", "none", 1.0, None, 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_objective_is_a_point_in_score_x_shape_x_link(name):
    o = composed(f"objective={name}").objective
    parts = (o.score["name"], o.shape["name"], o.link["name"])
    assert (*parts, o.beta, o.gamma_beta_ratio, o.nll) == PUBLISHED[name]
    assert (o.name, o.gamma, o.label_smoothing) == (name, None, 0.0)


class TestWhoWins:
    def test_the_command_line_over_an_experiment_over_an_objective(self):
        assert composed("objective=simpo").objective.gamma_beta_ratio == 0.1
        assert composed("experiment=alphapo_gemma2").objective.gamma_beta_ratio == 0.5
        assert composed("experiment=alphapo_gemma2 objective.gamma_beta_ratio=0.7").objective.gamma_beta_ratio == 0.7

    @pytest.mark.parametrize(
        "line", ["experiment=alphapo_gemma2 objective=dpo", "objective=dpo experiment=alphapo_gemma2"]
    )
    def test_a_group_on_the_command_line_over_the_experiment_in_either_order(self, line):
        assert composed(line).objective.name == "dpo"

    def test_values_over_groups_in_either_order(self):
        for line in ("objective=dpo objective.beta=0.7", "objective.beta=0.7 objective=dpo"):
            assert composed(line).objective.beta == 0.7

    def test_a_later_layer_over_an_earlier_one(self):
        cfg = composed("objective=dpo seed=1 trainer=small", "seed=2", "objective=simpo")
        assert (cfg.objective.name, cfg.seed, cfg.trainer.learning_rate) == ("simpo", 2, 5e-4)

    def test_the_last_of_two_values_of_one_key(self):
        assert composed("seed=1 seed=2").seed == 2

    def test_the_trainer_group_over_what_the_embedded_world_brings(self):
        assert composed("trainer=small").trainer.learning_rate == 5e-4
        assert composed("data=glassbox trainer=small").trainer.learning_rate == 5e-4


class TestGamma:
    """A gamma or a ratio on the command line replaces whichever a YAML sets; two at one place are an error."""

    def test_gamma_replaces_the_ratio_of_the_yaml(self):
        o = composed("objective=alphapo objective.gamma=0.3").objective
        assert (o.gamma, o.gamma_beta_ratio) == (0.3, None)

    def test_a_ratio_replaces_the_gamma_of_a_yaml(self, own):
        sources = own("objective/mine", "defaults: [alphapo, _self_]\nname: mine\ngamma: 0.3\ngamma_beta_ratio: null\n")
        assert composed("objective=mine", sources=sources).objective.gamma == 0.3
        o = composed("objective=mine objective.gamma_beta_ratio=0.5", sources=sources).objective
        assert (o.gamma, o.gamma_beta_ratio) == (None, 0.5)

    def test_a_gamma_of_zero_is_a_gamma(self):
        o = composed("objective=alphapo objective.gamma=0").objective
        assert (o.gamma, o.gamma_beta_ratio) == (0.0, None)

    def test_null_takes_the_margin_away(self):
        o = composed("objective=alphapo objective.gamma_beta_ratio=null").objective
        assert (o.gamma, o.gamma_beta_ratio) == (None, None)

    @pytest.mark.parametrize("keys", [("gamma", "gamma_beta_ratio"), ("gamma_beta_ratio", "gamma")])
    def test_both_on_the_command_line(self, keys):
        with pytest.raises(ConfigError, match="both given: give one"):
            composed(f"objective.{keys[0]}=1 objective.{keys[1]}=1")

    def test_both_in_one_yaml(self, own):
        sources = own("objective/twice", "defaults: [alphapo, _self_]\nname: twice\ngamma: 1\ngamma_beta_ratio: 1\n")
        with pytest.raises(ConfigError, match=r"twice.*gamma and gamma_beta_ratio are both set; give one"):
            composed("objective=twice", sources=sources)

    def test_both_in_one_experiment(self, own):
        sources = own("experiment/twice", "# @package _global_\nobjective: {gamma: 1, gamma_beta_ratio: 1}\n")
        with pytest.raises(ConfigError, match=r"twice\.yaml: gamma and gamma_beta_ratio are both set"):
            composed("experiment=twice", sources=sources)

    def test_the_gamma_of_an_experiment_replaces_the_ratio_of_its_objective(self, own):
        sources = own("experiment/wide", "# @package _global_\nobjective: {gamma: 0.9}\n")
        o = composed("experiment=wide objective=simpo", sources=sources).objective
        assert (o.name, o.gamma, o.gamma_beta_ratio) == ("simpo", 0.9, None)

    def test_the_gamma_of_an_own_objective_replaces_the_ratio_of_the_one_it_builds_on(self, own):
        sources = own("objective/mine", "defaults: [alphapo, _self_]\nname: mine\ngamma: 0.3\n")
        o = composed("objective=mine", sources=sources).objective
        assert (o.gamma, o.gamma_beta_ratio) == (0.3, None)

    def test_the_command_line_replaces_what_a_sweeps_base_set(self):
        o = composed("objective.gamma=0.3", "objective.gamma_beta_ratio=0.2").objective
        assert (o.gamma, o.gamma_beta_ratio) == (None, 0.2)


class TestTypes:
    def test_whole_numbers_where_floats_belong(self):
        cfg = composed("objective.beta=2 trainer.learning_rate=1 objective.shape.alpha=1")
        for value in (cfg.objective.beta, cfg.trainer.learning_rate, cfg.objective.shape["alpha"]):
            assert isinstance(value, float)

    @pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-03"])
    def test_exponents(self, text):
        assert composed(f"trainer.learning_rate={text}").trainer.learning_rate == 0.001

    def test_minus_zero_is_zero(self):
        cfg = composed("objective.shape.alpha=-0.0 objective.gamma=-0.0")
        assert math.copysign(1, cfg.objective.shape["alpha"]) == math.copysign(1, cfg.objective.gamma) == 1
        assert identity(cfg) == identity(composed("objective.shape.alpha=0 objective.gamma=0"))

    @pytest.mark.parametrize("text", ["'a b=c,d'", '"a b=c,d"', r"a\ b\=c\,d"])
    def test_quoting(self, text):
        sources = Sources()
        cfg = compose("train", TrainConfig, [read_line([f"data.path={text}"], sources)], sources)
        assert cfg.data.path == "a b=c,d"

    def test_a_number_is_text_where_text_belongs(self):
        assert composed("run.name=7").run.name == "7"

    def test_lists_and_nulls(self):
        cfg = composed("tracking.tags=[a,b] model.lora.target_modules=[q_proj] data.limit=null")
        assert (cfg.tracking.tags, cfg.model.lora.target_modules, cfg.data.limit) == (["a", "b"], ["q_proj"], None)

    def test_paths_are_a_text_or_a_list_of_texts(self):
        assert composed("data=jsonl model=from_scratch data.path=2024_01").data.path == "2024_01"
        assert composed("data=jsonl model=from_scratch data.path=[1e3,b.jsonl] data.weights=[7,3]").data.path == [
            "1e3",
            "b.jsonl",
        ]
        for line, says in {
            "data.path={a:1}": r"data\.path=.*must be a text, or a list of texts",
            "data.eval_path=[]": r"data\.eval_path=\[\]: must be a text, or a list of texts",
            "data.path=[a,b] data.weights=[1]": r"data\.weights=\[1\]: 1 weights for 2 entries of data\.path",
            "data.path=a data.weights=[0]": r"data\.weights=\[0\]: every weight must be above 0",
            "data.weights=[1]": "1 weights for 0 entries",
        }.items():
            with pytest.raises(ConfigError, match=says):
                composed(f"data=jsonl model=from_scratch {line}")

    def test_arguments_of_the_chat_template_have_names_of_their_own(self):
        typed = composed("data.chat_template_kwargs.enable_thinking=false data.chat_template_kwargs.level=high")
        assert typed.data.chat_template_kwargs == {"enable_thinking": False, "level": "high"}
        whole = composed("data.chat_template_kwargs={enable_thinking:false,level:high}")
        assert whole.data == typed.data
        assert identity(whole)["data.chat_template_kwargs.enable_thinking"] is False
        with pytest.raises(ConfigError, match="is a group of keys, not a value"):
            composed("data.chat_template_kwargs=false")
        with pytest.raises(ConfigError, match=r"did you mean 'data\.chat_template_kwargs'"):
            composed("data.chat_template_kwarg.enable_thinking=false")

    def test_one_composition_does_not_leak_into_the_next(self):
        first = composed("objective.beta=9 tracking.tags=[x]")
        first.objective.shape["alpha"] = 77.0
        second = composed("")
        assert (second.objective.beta, second.tracking.tags, second.objective.shape["alpha"]) == (2.5, [], 0.25)


class TestParts:
    def test_switching_a_part_keeps_the_rest(self):
        o = composed("objective=ipo objective/shape=power objective.shape.alpha=0.5").objective
        assert (o.name, o.score["name"], o.link["name"]) == ("ipo", "ratio_mean", "squared")
        assert o.shape == {"name": "power", "alpha": 0.5, "convention": "auto"}

    def test_parameters_of_the_part_that_was_there_before_are_gone(self):
        assert composed("objective=alphapo objective/shape=identity").objective.shape == {"name": "identity"}

    def test_ipo_of_the_equation(self):
        assert composed("objective=ipo objective/score=ratio_sum").objective.score == {"name": "ratio_sum"}

    def test_switching_to_the_same_part_keeps_what_the_objective_says_of_it(self):
        """conf/objective/alphapo.yaml chooses `power` with the paper's convention; naming `power` again changes nothing."""
        assert identity(composed("objective=alphapo objective/shape=power")) == identity(composed("objective=alphapo"))


class TestOwnYaml:
    def test_an_objective(self, own):
        sources = own(
            "objective/mine",
            "defaults:\n  - score: mean\n  - shape: power\n  - link: hinge\n  - _self_\n"
            "name: mine\nbeta: 4\nlink:\n  delta: 2.0\n",
        )
        o = composed("objective=mine", sources=sources).objective
        assert (o.name, o.beta, o.link) == ("mine", 4.0, {"name": "hinge", "delta": 2.0})

    def test_it_wins_over_a_shipped_one_of_the_same_name(self, own):
        sources = own(
            "objective/dpo",
            "defaults:\n  - score: sum\n  - shape: identity\n  - link: logistic\n  - _self_\nname: dpo\n",
        )
        assert composed("objective=dpo", sources=sources).objective.score == {"name": "sum"}
        assert composed("objective=dpo").objective.score == {"name": "ratio_sum"}

    def test_a_value_out_of_range_in_it(self, own):
        sources = own("objective/mine", "defaults: [alphapo, _self_]\nbeta: -3\n")
        with pytest.raises(ConfigError, match=r"objective\.beta=-3\.0: must be above 0"):
            composed("objective=mine", sources=sources)
        assert composed("objective=mine objective.beta=3", sources=sources).objective.beta == 3

    def test_an_experiment(self, own):
        sources = own("experiment/night", "# @package _global_\ndefaults:\n  - override /objective: dpo\nseed: 5\n")
        cfg = composed("experiment=night objective.beta=0.2", sources=sources)
        assert (cfg.objective.name, cfg.objective.beta, cfg.seed) == ("dpo", 0.2, 5)

    def test_its_names_are_among_the_choices(self, own):
        sources = own("objective/mine", "defaults: [alphapo, _self_]\nname: mine\n")
        with pytest.raises(ConfigError, match=r"did you mean 'mine'"):
            composed("objective=mien", sources=sources)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            (
                "defaults: [alphapo, _self_]\nbtea: 3\n",
                "'btea' not in 'ObjectiveConfig'; did you mean 'objective.beta'?",
            ),
            ("defaults: [alphapo, _self_]\nalpha: 3\n", "did you mean 'objective.shape.alpha'?"),
            ("defaults: [alphapo, _self_]\nbeta: abc\n", "abc"),
            ("defaults: [alphapp, _self_]\n", "alphapp"),
            ("beta: [\n", "flow node"),
            ("", "score"),
            ("name: mine\nbeta: 1\n", "choices: mean, odds"),
            ("defaults: [alphapo, _self_]\nshape: {aplha: 1}\n", "aplha"),
        ],
    )
    def test_faults_in_it_are_errors_of_one_line_that_name_it(self, text, parts, own):
        sources = own("objective/mine", text)
        with pytest.raises(ConfigError) as error:
            composed("objective=mine", sources=sources)
        assert "mine" in str(error.value)
        assert parts in str(error.value)
        assert len(str(error.value).splitlines()) == 1


class TestIdentity:
    def test_what_does_not_change_numbers_does_not_change_the_name(self):
        watched = "tracking.mode=disabled tracking.group=g run.dir=elsewhere data.workers=4"
        assert run_name(composed(watched)) == run_name(composed(""))

    @pytest.mark.parametrize(
        "line",
        ["seed=1", "objective.beta=2.6", "trainer.threads=2", "trainer.max_steps=3", "data.limit=9", "probe.every=3"],
    )
    def test_what_does_changes_it(self, line):
        assert run_name(composed(line)) != run_name(composed(""))

    def test_it_is_the_same_however_the_configuration_was_said(self):
        by_experiment = composed("experiment=alphapo_llama3_instruct")
        by_hand = composed(
            "experiment=simpo_recipe model.path=meta-llama/Meta-Llama-3-8B-Instruct data=hub "
            "data.name=princeton-nlp/llama3-ultrafeedback data.eval_split=test data.format=messages "
            "objective.gamma_beta_ratio=1 trainer.learning_rate=1e-6"
        )
        assert run_name(by_experiment) == run_name(by_hand)
        assert run_name(composed("objective.beta=2.50")) == run_name(composed("objective.beta=25e-1"))

    def test_a_name_of_its_own_wins(self):
        assert run_name(composed("run.name=mine")) == "mine"


def test_the_printed_configuration_composes_to_itself():
    import yaml

    cfg = composed("objective=ipo objective/shape=power tracking.tags=[a] data.limit=3")
    printed = yaml.safe_load(to_yaml(cfg))
    assert printed["objective"]["shape"]["name"] == "power"
    assert (printed["data"]["limit"], printed["tracking"]["tags"], printed["run"]["name"]) == (3, ["a"], None)


@pytest.mark.parametrize("content", [b"name: mine\nrate: [1\n", b"name: mine\nword: \xff\n"])
@pytest.mark.parametrize("line", [[], ["objective/shape=mine"]])
def test_a_users_file_that_is_no_yaml_is_named(tmp_path, line, content):
    """Also one that was not chosen: all parts of a kind are read for their parameters."""
    file = tmp_path / "objective" / "shape" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    sources = Sources(tmp_path)
    with pytest.raises(ConfigError, match=re.escape("mine")):
        compose("train", TrainConfig, [read_line(line, sources)], sources)


def test_a_whole_number_of_a_part_is_the_same_however_it_is_written():
    def composed(steps):
        return compose(
            "train",
            TrainConfig,
            [read_line(["objective=gamma_po", f"objective.margin.steps={steps}"], Sources())],
            Sources(),
        )

    assert repr(composed("30.0").objective.margin["steps"]) == "30"
    assert run_name(composed("30.0")) == run_name(composed("30"))

"""The embedded world's settings and those of other models never meet: which model, data, trainer and probe a line means."""

from __future__ import annotations

import pytest
import yaml

from alphapo_cli.config.compose import compose, to_yaml
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import ProbeConfig, TrainConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.runs.identity import identity, run_name
from alphapo_cli.sweep.grid import make

OWN = "model.path=./m data=jsonl data.path=x.jsonl"


def composed(line, sources=None):
    sources = sources or Sources()
    return compose("train", TrainConfig, [read_line(line.split(), sources)], sources)


def is_of_the_world(cfg):
    """Its learning rate, epochs, device, threads, lengths and probe."""
    t = cfg.trainer
    facts = (t.learning_rate, t.num_train_epochs, t.use_cpu, t.threads, cfg.data.max_length, cfg.probe.every)
    assert facts in ((8e-4, 4.0, True, 1, 64, 16), (7e-7, 1.0, False, None, 2048, None)), facts
    return facts[0] == 8e-4


@pytest.mark.parametrize("line", ["", "data=glassbox", "model=glassbox", "model=glassbox data=glassbox", "objective=dpo",
                                  "model.path=null", "data.source=glassbox"])  # fmt: skip
def test_its_own_model_on_its_own_pairs(line):
    assert is_of_the_world(composed(line))


@pytest.mark.parametrize(
    "line",
    [OWN, "model=path " + OWN, "model.path=./m data=hub data.name=a/b", "model=from_scratch data=ultrafeedback",
     "model.path=./m data=glassbox", "model=from_scratch data=glassbox", "model=glassbox data=jsonl data.path=x.jsonl",
     "model.source=from_scratch data.source=files data.path=x.jsonl"],
)  # fmt: skip
def test_another_model_or_other_data_have_the_published_settings(line):
    assert not is_of_the_world(composed(line))


class TestWhatIsLeftOut:
    """Nothing trains a user's model on the world's pairs, or the world's model on a user's, unless it is said."""

    @pytest.mark.parametrize(
        "line", ["model.path=./m", "model=from_scratch", "model=path model.path=./m", "model.source=from_scratch",
                 "model.path=./m trainer=small", "model.path=./m experiment=quick"],
    )  # fmt: skip
    def test_data(self, line):
        with pytest.raises(ConfigError, match=r"^model(\.path)?=\S+: on which data\? give data=\.\.\. too"):
            composed(line)

    @pytest.mark.parametrize(
        "line",
        ["data=jsonl data.path=x.jsonl", "data=hh_rlhf", "data.source=files data.path=x", "data=hub trainer=small"],
    )
    def test_a_model(self, line):
        with pytest.raises(ConfigError, match=r"^data(\.source)?=\w+: which model\? give model\.path=DIRECTORY"):
            composed(line)

    def test_an_experiment_that_names_data(self, tmp_path):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "mine.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /data: hh_rlhf\n"
        )
        sources = Sources(tmp_path)
        with pytest.raises(ConfigError, match=r"^data=hh_rlhf: which model"):
            composed("experiment=mine", sources)
        assert not is_of_the_world(composed("experiment=mine model.path=./m", sources))

    @pytest.mark.parametrize("group", ["trainer", "probe"])
    def test_settings_of_the_world_for_other_data(self, group):
        with pytest.raises(ConfigError, match=f"^{group}=glassbox: settings of the embedded world, .* data=glassbox"):
            composed(f"{OWN} {group}=glassbox")
        # To train a model of the world on.
        cfg = composed(f"model.path=runs/x data=glassbox {group}=glassbox")
        assert (cfg.trainer.learning_rate == 8e-4) == (group == "trainer")


class TestWhatIsChosen:
    def test_a_trainer_and_a_probe(self):
        for group, value in (("trainer", "learning_rate"), ("probe", "every")):
            chosen, brought = composed(f"{group}=default"), composed("")
            assert getattr(getattr(chosen, group), value) != getattr(getattr(brought, group), value)
        assert composed("probe=default").probe == ProbeConfig()
        assert composed("trainer=small").trainer.learning_rate == 5e-4
        assert composed("trainer=small").data.max_length == 64

    def test_single_settings(self):
        cfg = composed("trainer.learning_rate=1e-3 data.max_length=2048 probe.every=3")
        assert (cfg.trainer.learning_rate, cfg.data.max_length, cfg.probe.every) == (1e-3, 2048, 3)
        assert cfg.trainer.num_train_epochs == 4

    def test_what_an_experiment_sets_in_the_world(self, tmp_path):
        assert composed("experiment=quick").trainer.learning_rate == 8e-4
        (tmp_path / "experiment").mkdir()
        text = "# @package _global_\ndefaults:\n  - override /trainer: small\ndata: {max_length: 50}\n"
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        cfg = composed("experiment=mine", Sources(tmp_path))
        assert (cfg.trainer.learning_rate, cfg.probe.every, cfg.data.max_length) == (5e-4, 16, 50)


class TestWhatIsShown:
    @pytest.mark.parametrize("line", [OWN, "model=path " + OWN, "model=from_scratch " + OWN, "model=glassbox " + OWN])
    def test_beside_a_path_the_source_is_the_path(self, line):
        assert yaml.safe_load(to_yaml(composed(line)))["model"]["source"] == "path"

    def test_it_is_no_part_of_a_runs_identity(self):
        """Earlier versions wrote whatever the model group said, which nothing read."""
        assert "model.source" not in identity(composed(OWN))
        names = {
            run_name(composed(f"{group} {OWN}")) for group in ("", "model=path", "model=from_scratch", "model=glassbox")
        }
        assert len(names) == 1
        assert run_name(composed("model=from_scratch data=jsonl")) != run_name(composed("model=glassbox data=jsonl"))


def test_the_cells_of_a_sweep_differ_in_it():
    cells = make(None, ["model.path=null,./m", "data=glassbox"], Sources()).cells
    assert [is_of_the_world(cell.cfg) for cell in cells] == [True, False]
    cells = make(None, ["data=jsonl,glassbox", "model=glassbox"], Sources()).cells
    assert [is_of_the_world(cell.cfg) for cell in cells] == [False, True]
    with pytest.raises(ConfigError, match=r"^model\.path=\./m: on which data"):
        make(None, ["model.path=null,./m"], Sources())

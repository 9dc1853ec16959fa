"""Which cells a line makes, and when two lines are one sweep."""

from __future__ import annotations

import json

import pytest

from alphapo_cli.config.overrides import Sources
from alphapo_cli.errors import ConfigError
from alphapo_cli.sweep.grid import make

ALPHA = "objective.shape.alpha"


def grid(line, name=None):
    return make(name, line.split(), Sources())


def values(made, key=ALPHA):
    return [cell.point[key] for cell in made.cells]


class TestCells:
    def test_a_list_on_the_command_line_replaces_the_files(self):
        assert values(grid(f"{ALPHA}=-0.5,0,0.5,1", "alpha")) == [-0.5, 0, 0.5, 1]

    def test_a_single_value_of_a_swept_key_is_a_sweep_of_one(self):
        assert values(grid(f"{ALPHA}=0.5", "alpha")) == [0.5]

    def test_a_list_on_a_new_key_is_another_dimension(self):
        made = grid(f"{ALPHA}=0,1 seed=0,1,2", "alpha")
        assert [c.overrides for c in made.cells] == [(f"{ALPHA}={a}", f"seed={s}") for a in (0, 1) for s in (0, 1, 2)]
        assert [(c.cfg.objective.shape["alpha"], c.cfg.seed) for c in made.cells][-1] == (1.0, 2)

    def test_a_single_value_of_another_key_changes_the_base(self):
        made = grid(f"{ALPHA}=0,1 objective.beta=7", "alpha")
        assert made.keys == (ALPHA,)
        assert {c.cfg.objective.beta for c in made.cells} == {7.0}

    @pytest.mark.parametrize("idle", ["tracking.project=a,b", "run.name=a,b", "data.workers=1,2"])
    def test_a_key_by_which_no_cell_differs_is_refused(self, idle):
        with pytest.raises(ConfigError, match=f"'{idle}': no cell differs by it; give it one value"):
            grid(f"{ALPHA}=0,1 {idle}", "alpha")

    def test_objectives(self):
        made = grid("objective=simpo,dpo,alphapo")
        assert [c.cfg.objective.name for c in made.cells] == ["simpo", "dpo", "alphapo"]
        assert made.name == "sweep"

    def test_shapes_with_a_key_that_only_one_of_them_has(self):
        with pytest.raises(ConfigError, match="the shape 'identity' has no parameters"):
            grid(f"objective/shape=identity,power {ALPHA}=0,1")

    @pytest.mark.parametrize("text", ["range(-0.1,0.35,0.1)", "-0.1,0,0.1,0.2,0.3"])
    def test_values_of_a_range_are_rounded(self, text):
        """-0.1 + 0.1 is 1e-17 in floats and 0.1 + 0.2 is 0.30000000000000004; alpha = 0 must be SimPO itself."""
        made = grid(f"{ALPHA}={text}")
        assert values(made) == [-0.1, 0, 0.1, 0.2, 0.3]
        assert [repr(c.cfg.objective.shape["alpha"]) for c in made.cells] == ["-0.1", "0.0", "0.1", "0.2", "0.3"]
        assert [c.id for c in made.cells] == [c.id for c in grid(f"{ALPHA}=-0.1,0,0.1,0.2,0.3").cells]

    def test_the_last_of_two_settings_of_a_key_counts(self):
        assert values(grid("seed=0,1 seed=2"), "seed") == [2]
        assert values(grid("seed=2 seed=0,1"), "seed") == [0, 1]

    def test_a_range_over_a_key_that_takes_a_text(self):
        assert values(grid("model.revision=range(1,4)"), "model.revision") == [1, 2, 3]
        assert values(grid("model.revision=range(1,3)"), "model.revision") == [1, 2]

    def test_an_item_of_a_files_list_is_one_value(self, tmp_path):
        texts = ["Be brief, please.", "Say 'no' (or yes)", "short", ""]
        file = tmp_path / "s.yaml"
        file.write_text(json.dumps({"description": "d", "grid": {"data.system": texts}}))
        assert [cell.cfg.data.system for cell in grid("", str(file)).cells] == texts

    def test_zero_is_zero_however_it_is_written(self):
        assert values(grid(f"{ALPHA}=0,0.0,-0.0,1,1.0,1e0")) == [0, 1]

    @pytest.mark.parametrize("text", ["choice(0,1)", "range(0,2)"])
    def test_hydras_other_ways_of_listing(self, text):
        assert values(grid(f"{ALPHA}={text}")) == [0, 1]

    def test_text_values_survive_quoting(self):
        made = make(None, ["data.path='a b.jsonl','c,d.jsonl'", "data=jsonl", "model=from_scratch"], Sources())
        assert [c.cfg.data.path for c in made.cells] == ["a b.jsonl", "c,d.jsonl"]

    def test_lists_are_values(self):
        made = make(None, ["model.lora.target_modules=[q_proj],[q_proj,v_proj]"], Sources())
        assert [c.cfg.model.lora.target_modules for c in made.cells] == [["q_proj"], ["q_proj", "v_proj"]]

    def test_nulls_and_booleans(self):
        made = make(None, ["data.limit=null,5", "model.merge=true,false"], Sources())
        assert [(c.cfg.data.limit, c.cfg.model.merge) for c in made.cells] == [
            (None, True), (None, False), (5, True), (5, False),
        ]  # fmt: skip

    def test_a_grid_over_gamma_replaces_the_ratio_of_the_objective(self):
        made = grid("objective.gamma=0.1,0.2")
        assert [(c.cfg.objective.gamma, c.cfg.objective.gamma_beta_ratio) for c in made.cells] == [
            (0.1, None),
            (0.2, None),
        ]


class TestIdentity:
    def test_more_values_are_the_same_sweep(self):
        few, many = grid(f"{ALPHA}=0,1"), grid(f"{ALPHA}=0,0.5,1")
        assert few.hash == many.hash
        assert {c.id for c in few.cells} < {c.id for c in many.cells}

    def test_the_order_of_keys_and_values_does_not_matter(self):
        one, other = grid(f"{ALPHA}=0,1 seed=0,1"), grid(f"seed=1,0 {ALPHA}=1,0")
        assert one.hash == other.hash
        assert {c.id for c in one.cells} == {c.id for c in other.cells}

    @pytest.mark.parametrize(
        "change", ["objective.beta=3", "seed=1", "trainer.max_steps=7", "objective=simpo", "seed=0,1"]
    )
    def test_another_base_or_another_key_is_another_sweep(self, change):
        key = "trainer.learning_rate=1e-3,1e-4"
        assert grid(key).hash != grid(f"{key} {change}").hash

    @pytest.mark.parametrize("change", ["tracking.mode=disabled", "run.dir=x", "data.workers=3", "tracking.group=g"])
    def test_watching_and_places_do_not_matter(self, change):
        one, other = grid(f"{ALPHA}=0,1"), grid(f"{ALPHA}=0,1 {change}")
        assert one.hash == other.hash
        assert [c.id for c in one.cells] == [c.id for c in other.cells]

    def test_saying_a_default_changes_nothing(self):
        assert grid(f"{ALPHA}=0,1").hash == grid(f"{ALPHA}=0,1 objective.beta=2.50 seed=0").hash

    def test_a_file_of_ones_own(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("description: d\nbase: [objective=dpo, seed=4]\ngrid:\n  objective.beta: [0.1, 0.2]\n")
        made = grid("", str(file))
        assert (made.name, made.description) == ("mine", "d")
        assert [(c.cfg.objective.name, c.cfg.objective.beta, c.cfg.seed) for c in made.cells] == [
            ("dpo", 0.1, 4), ("dpo", 0.2, 4),
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        ["alpha"],
        ["alpha", "seed=0,1", "trainer.learning_rate=1e-4,0.001"],
        ["alpha_gamma"],
        [None, "objective.gamma=0.5,1", "objective=simpo"],
        [None, "objective=simpo,alphapo,dpo", "seed=1,2"],
        [None, "data.limit=null,10", "data.prompt_column=a,b"],
        [None, "objective/shape=tanh", "objective.shape.scale=1,2"],
        pytest.param(["methods"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cells_composed_together_are_those_composed_alone(line):
    from alphapo_cli.config import compose as module
    from alphapo_cli.sweep import grid

    def alone(primary, schema, layers, cells, sources):
        return [module.compose(primary, schema, [*layers, cell], sources) for cell in cells]

    name, *texts = line
    together = grid.make(name, texts, Sources())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "compose_each", alone)
        one_by_one = grid.make(name, texts, Sources())
    assert [c.cfg for c in together.cells] == [c.cfg for c in one_by_one.cells]
    assert [c.id for c in together.cells] == [c.id for c in one_by_one.cells]
    assert len(together.cells) > 1

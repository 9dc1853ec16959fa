"""Every YAML that is shipped: it can be reached, composes, and says what the code says."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from alphapo_cli.config.compose import compose
from alphapo_cli.config.keys import leaves
from alphapo_cli.config.objective_parts import at_zero
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import GlassboxConfig, ObjectiveConfig, TrainConfig
from alphapo_cli.config.shipped import shipped
from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardConfig
from alphapo_cli.evaluation.schema import EvalConfig
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.launch.schema import SweepConfig
from alphapo_cli.objective.build import build
from alphapo_cli.objective.catalog import Method
from alphapo_cli.objective.data_requirements import check_columns, check_sides
from alphapo_cli.objective.part import TABLES
from alphapo_cli.pairs.scoring.schema import PairsConfig, ScoreConfig
from alphapo_cli.sweep.grid import make
from tests import tiny

CONF, SWEEPS = shipped("conf"), shipped("sweeps")
FILES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.y*ml"))
PRIMARIES = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "eval": EvalConfig,
    "arena_hard": ArenaHardConfig,
    "sweep": SweepConfig,
    "score": ScoreConfig,
    "pairs": PairsConfig,
}
# The groups that only one stage knows; the others are training's.
OWNERS = {"launcher": "sweep", "judge": "eval", "generation": "generate", "scorer": "score", "pairs": "pairs"}
# What a recipe asks for whose constants were not recovered, by the key's last name.
ASKED = {
    "samples": 4, "share": 0.5, "count": 2, "gamma": 1.0, "length_weight": 0.1,
    "low": "[0,0]", "high": "[1,1]",
}  # fmt: skip
# What a part needs beside it: without a preference term only the NLL is left, and weights of either sign need a sum.
BESIDE = {"objective/link/none": ["objective.nll=1"], "objective/token/guided": ["objective/score=ratio_sum"]}
METHODS = tiny.catalogue()
# Choices of another model than the embedded world's, or of other data.
CHOICES_OF_OTHERS = [f.replace("/", "=") for f in FILES if f.startswith(("model/", "data/")) and "glassbox" not in f]
PARTS = [(kind, name) for kind, table in TABLES.items() for name in table]


def composed(*line, primary="train"):
    """Of a model and data of the user's where one of them is; the embedded world's go together by default."""
    sources = Sources()
    own = {"model": "model.path=m", "data": "data=jsonl"}
    if primary == "train" and any(text in CHOICES_OF_OTHERS for text in line):
        line = (*line, *(text for group, text in own.items() if not any(t.startswith(group) for t in line)))
    return compose(primary, PRIMARIES[primary], [read_line(line, sources)], sources)


def test_there_is_something_to_look_at():
    assert len(FILES) > 20
    assert {p.suffix for p in (*CONF.rglob("*"), *SWEEPS.rglob("*")) if p.is_file()} == {".yaml"}


# Hydra takes a tenth of a second for each; the slow tests have those that are left out here.
_OBJECTIVES = [f for f in FILES if f.startswith("objective/")]
SPARED = {f for i, f in enumerate(_OBJECTIVES) if i % 4}


def marked(files):
    return [pytest.param(f, marks=[pytest.mark.slow] if f in SPARED else []) for f in files]


@pytest.mark.parametrize("file", marked(FILES))
def test_it_is_reached_composes_and_makes_an_objective(file):
    group, _, choice = file.rpartition("/")
    if not group:
        assert file in PRIMARIES, f"conf/{file}.yaml is the primary of no stage"
        cfg = composed(primary=file)
    elif group in OWNERS:
        asked = [f"{key}={ASKED[key.rpartition('.')[2]]}" for key in asked_of(file)]
        if asked:
            with pytest.raises(UsageError, match="is required and has no default"):
                composed(f"{group}={choice}", *asked[1:], primary=OWNERS[group])
        assert composed(f"{group}={choice}", *asked, primary=OWNERS[group])
        return
    else:
        assert group in Sources().groups()
        # Choosing a group that no primary's defaults list holds is an error of Hydra.
        cfg = composed(f"{group}={choice}", *BESIDE.get(file, ()))
    if not hasattr(cfg, "objective"):
        return
    objective = build(cfg.objective)
    assert objective.beta == cfg.objective.beta
    for kind, bound in objective.parts.items():
        assert {"name": bound.part.name, **bound.settings} == getattr(cfg.objective, kind)
    if group == "objective":
        # `alphapo objectives` reads the YAMLs without Hydra, for speed; this is what keeps the two one.
        assert METHODS[choice].objective.parts == objective.parts
        assert METHODS[choice].defaults == Method(choice, CONF / f"{file}.yaml", cfg.objective).defaults


@pytest.mark.parametrize("file", marked(f for f in FILES if "/" in f))
def test_its_values_arrive(file):
    """A value that a YAML sets and that something else overrides when it is chosen would be a lie."""
    group, _, choice = file.rpartition("/")
    text = (CONF / f"{file}.yaml").read_text()
    content = yaml.safe_load(text) or {}
    content.pop("defaults", None)
    at_root = "@package _global_" in text.splitlines()[0]
    line = [f"{group}={choice}", *(f"{key}={ASKED[key.rpartition('.')[2]]}" for key in asked_of(file))]
    root = OmegaConf.structured(composed(*line, primary=OWNERS.get(group, "train")))
    node = root if at_root else OmegaConf.select(root, group.replace("/", "."))
    for key, value in _leaves(content):
        if group == "objective/shape" and key == "convention":
            continue  # an objective's own convention is said in its YAML, above the part's default
        if value == "???":
            continue
        assert OmegaConf.select(node, key) == value, f"conf/{file}.yaml: {key}"


def asked_of(file):
    """The keys that a recipe asks for."""
    content = yaml.safe_load((CONF / f"{file}.yaml").read_text()) if file.startswith("pairs/") else {}
    return [key for key, value in _leaves(content) if value == "???"]


def _leaves(content, prefix=""):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("choice", [f.removeprefix("data/") for f in FILES if f.startswith("data/")])
def test_every_data_set_is_also_a_source_of_prompts(choice):
    """What a YAML brings for training only is left aside."""
    found, trained = composed(f"data={choice}", primary="generate").data, composed(f"data={choice}").data
    assert replace(found, max_length=trained.max_length) == trained


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_parts_yaml_equals_its_functions_parameters(kind, name):
    """The defaults stand in the signature and in the YAML; this is what keeps them one."""
    file = CONF / "objective" / kind / f"{name}.yaml"
    assert file.is_file(), f"{kind} '{name}' has no YAML"
    written = yaml.safe_load(file.read_text())
    signature = inspect.signature(TABLES[kind][name].function)
    parameters = {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    drawn = {"run_seed"} if TABLES[kind][name].seeded else set()  # the run's, no setting of the part
    assert {n for n, p in parameters.items() if p.default is p.empty} == drawn
    declared = {n: p.default for n, p in parameters.items() if n not in drawn}
    assert written == {"name": name, **declared}
    assert {k: type(v) for k, v in written.items()} == {"name": str, **{k: type(v) for k, v in declared.items()}}


def test_every_yaml_of_a_part_has_its_function():
    written = {(p.parent.name, p.stem) for kind in TABLES for p in (CONF / "objective" / kind).glob("*.yaml")}
    assert written == set(PARTS)


@pytest.mark.parametrize("score", list(TABLES["score"]))
def test_every_score_goes_with_every_shape_and_link(score):
    for shape, link in itertools.product(TABLES["shape"], TABLES["link"]):
        parts = {"score": {"name": score}, "shape": {"name": shape}, "link": {"name": link}}
        objective = build(ObjectiveConfig(**parts, nll=1.0))
        assert objective.needs_reference == score.startswith("ratio")
        assert objective.needs_rejected == (link != "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    # Its cells are every objective: seven seconds.
    [
        pytest.param(f, id=f.stem, marks=[pytest.mark.slow] * (f.stem == "methods"))
        for f in sorted(SWEEPS.rglob("*.yaml"))
    ],
)
def test_every_sweep(file: Path):
    content = yaml.safe_load(file.read_text())
    assert set(content) == {"description", "base", "grid"}
    assert content["description"]
    grid = make(file.stem, ["seed=0"] if "seed" in content["grid"] else [], Sources())  # one is as good as three
    assert len(grid.cells) > 1
    for cell in grid.cells:
        build(cell.cfg.objective)


def test_the_sweep_of_methods_has_every_objective_that_the_embedded_world_can_train():
    pairs = world.make_pairs(GlassboxConfig(pairs=300))
    columns = {name: np.array([pair.columns[name] for pair in pairs]) for name in pairs[0].columns}

    def fits(method):
        try:
            check_sides(method.objective, 2, False, "the embedded world")
            check_columns(method.objective, columns, range(len(pairs)), "the embedded world")
        except UsageError:
            return False
        return not method.objective.needs_guide

    swept = yaml.safe_load((SWEEPS / "methods.yaml").read_text())["grid"]["objective"]
    assert set(swept.replace(" ", "").split(",")) == {name for name, method in METHODS.items() if fits(method)}


@pytest.mark.parametrize(("name", "objective"), [("alpha", "alphapo"), ("alpha_ratio", "alphapo_ratio")])
def test_the_alpha_sweeps_are_thirteen_values_from_minus_one_to_two(name, objective):
    grid = make(name, [], Sources())
    assert [c.cfg.objective.shape["alpha"] for c in grid.cells] == [-1 + k / 4 for k in range(13)]
    assert {c.cfg.objective.name for c in grid.cells} == {objective}
    assert {c.cfg.data.source for c in grid.cells} == {"glassbox"}


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["objective=alphapo"], "SimPO"),
        (["objective=alphapo_ratio"], "DPO"),
        (["objective=ipo", "objective/shape=power"], "IPO"),
        (["objective=cpo", "objective/shape=power"], "CPO"),
        (["objective=orpo", "objective/shape=power"], "ORPO"),
        (["objective=alphapo", "objective/score=sum"], None),
        (["objective=alphapo", "objective/token=prefix"], None),
        (["objective=alphapo_adaptive"], None),
        (["objective=dpo"], None),
    ],
)
def test_what_alpha_0_is_called_goes_by_the_parts(overrides, method):
    assert at_zero(leaves(asdict(composed(*overrides)))) == method

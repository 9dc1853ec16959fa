"""What a run and a cell are known by: keys that are added, defaults that change, directories of earlier versions.

first_version/ was made by the version before names left defaults out: a run, a sweep over alpha and one over
objectives, without their weights.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alphapo_cli.config import schema
from alphapo_cli.config.compose import compose
from alphapo_cli.config.objective_parts import declared
from alphapo_cli.config.overrides import Sources, parse, read_line
from alphapo_cli.errors import UsageError
from alphapo_cli.runs import format_version, identity
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.storage.run_lock import acquire

KEPT = Path(__file__).parent / "first_version"
ALPHA = "objective.shape.alpha"
RUN, OVER_ALPHA, OVER_OBJECTIVES = "alphapo-31575310", "alpha-143887d2", "sweep-98d3f3ff"
LINE = (
    "trainer.max_steps=2", "trainer.per_device_train_batch_size=4", "data.glassbox.pairs=16", "probe.pairs=4",
    "probe.samples=0", "tracking.mode=disabled", "tracking.pictures=false",
)  # fmt: skip
OF_THE_RUN = ("train", *LINE, f"{ALPHA}=0.5")
NOW = max(format_version.NUMERICS)
SWEEPS = {OVER_ALPHA: ("sweep", "alpha", f"{ALPHA}=0,1"), OVER_OBJECTIVES: ("sweep", "objective=simpo,alphapo")}


@dataclass
class MoreOfTrainer(schema.TrainerConfig):
    new_key: float = 0.5


@dataclass
class OneMoreKey(schema.TrainConfig):
    """The schema of a later version that has one key more."""

    trainer: MoreOfTrainer = field(default_factory=MoreOfTrainer)


@dataclass
class OtherTrainer(schema.TrainerConfig):
    weight_decay: float = 0.1
    adam_beta2: float = 0.99


@dataclass
class OtherDefaults(schema.TrainConfig):
    """The schema of a later version that has other defaults."""

    trainer: OtherTrainer = field(default_factory=OtherTrainer)


def composed(*line: str):
    return compose("train", schema.TrainConfig, [read_line(line, Sources())], Sources())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """runs/ of the first version, to be written to."""
    return Path(shutil.copytree(KEPT / "runs", tmp_path / "runs"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Puts another schema in place, as a later version would."""

    def put(made: type) -> None:
        from alphapo_cli.sweep import grid

        monkeypatch.setattr(schema, "TrainConfig", made)
        monkeypatch.setattr(grid, "TrainConfig", made)

    return put


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class TestWhatIsPartOfIt:
    def test_what_differs_from_the_defaults_and_the_parts_that_had_to_be_chosen(self):
        names = {f"objective.{kind}.name" for kind in ("score", "shape", "link")}
        said = identity.identity(composed("objective=dpo", "trainer.weight_decay=0.5"))
        assert names | {"objective.name", "objective.beta", "trainer.weight_decay"} <= set(said)
        assert not {"seed", "trainer.adam_beta2", "objective.token.name", "data.glassbox.seed"} & set(said)
        assert "seed" in identity.settings(composed())

    def test_a_default_that_is_said_is_none(self):
        assert identity.identity(composed("trainer.adam_beta2=0.999", "seed=0")) == identity.identity(composed())

    def test_a_parameter_at_what_its_part_declares_is_none(self):
        by_part = identity.identity(composed("objective=ipo", "objective/shape=power"))
        assert ALPHA not in by_part
        assert identity.identity(composed("objective=ipo", "objective/shape=power", f"{ALPHA}=1"))[ALPHA] == 1

    def test_a_new_key_changes_no_name(self, later):
        from alphapo_cli.sweep.grid import make

        def names():
            grid = make("alpha", [f"{ALPHA}=0,1", "seed=0,1"], Sources())
            return identity.run_name(composed()), grid.hash, [cell.id for cell in grid.cells]

        before = names()
        later(OneMoreKey)
        assert composed().trainer.new_key == 0.5
        assert names() == before
        assert identity.run_name(composed("trainer.new_key=1")) != before[0]

    def test_a_new_parameter_of_a_part_changes_no_name(self, monkeypatch):
        cfg = composed()
        before = identity.run_name(cfg)
        known = declared
        monkeypatch.setattr(
            identity, "declared", lambda kind, name: {**known(kind, name), **({"new": 3.0} if kind == "shape" else {})}
        )
        cfg.objective.shape["new"] = 3.0
        assert identity.run_name(cfg) == before
        cfg.objective.shape["new"] = 4.0
        assert identity.run_name(cfg) != before

    def test_a_key_that_is_gone_is_a_difference_unless_it_had_its_default(self, monkeypatch):
        now = identity.settings(composed())
        old = {**now, "trainer.gone": 1}
        assert identity.differing(old, now) == {"trainer.gone": (1, "absent")}
        monkeypatch.setitem(identity.RETIRED, "trainer.gone", 1)
        assert identity.differing(old, now) == {}
        assert identity.differing({**old, "trainer.gone": 2}, now) == {"trainer.gone": (2, 1)}


class TestDirectoriesOfTheFirstVersion:
    def test_the_same_line_finds_the_run_and_changes_nothing(self, alphapo, kept):
        before = contents(kept)
        ran = alphapo(*OF_THE_RUN)
        assert (ran.code, ran.path.name, ran.out.splitlines()[1]) == (0, RUN, "complete")
        (warning,) = [line for line in ran.err.splitlines() if "warning" in line]
        assert warning.startswith(f"alphapo: warning: this run was made under numerics 1 (now {NOW}: ")
        assert len(warning) <= 160
        assert "`alphapo env` lists what changed" in warning
        listed = json.loads(alphapo("env").out)["numerics"]
        assert (listed["now"], list(listed["changes"].values())) == (NOW, list(format_version.NUMERICS.values()))
        assert warning.endswith("--replace trains it anew")
        assert contents(kept) == before

    @pytest.mark.parametrize("name", SWEEPS)
    def test_the_same_line_finds_the_sweep_and_trains_nothing(self, name, alphapo, kept):
        before = contents(kept)
        ran = alphapo(*SWEEPS[name], *LINE, "launcher.workers=0")
        assert (ran.code, ran.path.name) == (0, name), ran.err
        assert "2 of the complete cells were made under numerics 1" in ran.err
        after = contents(kept)
        assert {k: after[k] for k in before} == before
        assert {p.parent.name for p in kept.rglob("config.yaml")} == {
            Path(k).parent.name for k in before if "config" in k
        }

    @pytest.mark.parametrize("name", SWEEPS)
    def test_its_cells_keep_their_ids_where_some_are_new(self, name, alphapo, kept):
        ids = [p.name for p in (kept / name / "cells").iterdir()]
        more = [text.replace("=0,1", "=0,1,2").replace("simpo,", "simpo,dpo,") for text in SWEEPS[name]]
        shown = alphapo(*more, *LINE, "--dry-run").out
        assert all(i in shown for i in ids)
        assert (shown.count("complete"), shown.count("pending")) == (2, 1)

    def test_a_cell_that_never_began_keeps_its_id_too(self, alphapo, kept):
        cells = kept / OVER_ALPHA / "cells"
        shutil.rmtree(next(cells.iterdir()))
        looked = alphapo(*SWEEPS[OVER_ALPHA], *LINE, "--dry-run")
        ids = [c["id"] for c in json.loads((kept / OVER_ALPHA / "sweep.json").read_text())["cells"]]
        assert all(i in looked.out for i in ids)

    def test_wandb_goes_on_with_the_run_that_it_knows(self, kept, monkeypatch, later):
        from alphapo_cli.stages.training import tracker

        monkeypatch.setattr(tracker, "open_tracker", lambda *_, run_id, **__: run_id)
        directory = RunDirectory(kept / RUN)
        before = tracker.run_tracker(composed(*OF_THE_RUN[1:]), directory, None)
        later(OneMoreKey)
        assert tracker.run_tracker(composed(*OF_THE_RUN[1:]), directory, None) == before

    def test_another_line_is_another_run(self, kept):
        cfg = composed(*LINE, f"{ALPHA}=0.75")
        cfg.run.dir = str(kept)
        assert identity.find_run(cfg) == kept / identity.run_name(cfg)
        assert not identity.find_run(cfg).exists()

    def test_after_a_key_was_added_it_is_found_as_well(self, alphapo, kept, later):
        later(OneMoreKey)
        ran = alphapo(*OF_THE_RUN)
        assert (ran.code, ran.path.name) == (0, RUN)
        swept = alphapo(*SWEEPS[OVER_ALPHA], *LINE, "launcher.workers=0")
        assert (swept.code, swept.path.name) == (0, OVER_ALPHA)


class TestADefaultThatChanged:
    @pytest.fixture
    def named(self, alphapo, kept, later):
        """The kept run under the name that today's version gives it; then a version with other defaults."""
        cfg = composed(*OF_THE_RUN[1:])
        place = (kept / RUN).rename(kept / identity.run_name(cfg))
        later(OtherDefaults)
        return place

    def test_the_line_says_which_and_trains_nothing(self, alphapo, kept, named):
        before = contents(kept)
        refused = alphapo(*OF_THE_RUN)
        assert refused.code == 2
        for said in (
            "trainer.adam_beta2: 0.999 there, 0.99 here; trainer.weight_decay: 0.0 there, 0.1 here",
            "type trainer.adam_beta2=0.999 trainer.weight_decay=0.0 to mean that one",
            "or start over with --replace",
        ):
            assert said in refused.fault
        assert contents(kept) == before

    def test_what_it_says_to_type_means_that_run(self, alphapo, named):
        again = alphapo(*OF_THE_RUN, "trainer.adam_beta2=0.999", "trainer.weight_decay=0.0")
        assert (again.code, again.path, again.out.splitlines()[1]) == (0, named, "complete")

    def test_a_sweep_says_which(self, alphapo, kept, later):
        record = json.loads((kept / OVER_ALPHA / "sweep.json").read_text())
        from alphapo_cli.sweep.grid import make

        grid = make("alpha", [f"{ALPHA}=0,1", *LINE], Sources())
        (kept / OVER_ALPHA).rename(kept / f"alpha-{grid.hash}")
        rewrite(kept / f"alpha-{grid.hash}" / "sweep.json", **{**record, "hash": grid.hash})
        later(OtherDefaults)
        before = contents(kept)
        refused = alphapo(*SWEEPS[OVER_ALPHA], *LINE)
        assert refused.code == 2
        assert "trainer.weight_decay: 0.0 there, 0.1 here" in refused.fault
        assert "type trainer.adam_beta2=0.999 trainer.weight_decay=0.0 to mean that one" in refused.fault
        assert contents(kept) == before

    def test_a_cell_says_so_where_the_key_belongs_to_what_is_swept(self, alphapo, kept):
        """What a file of conf/ chooses for `objective=simpo` stands in no cell's overrides and not in the base."""
        for file in (kept / OVER_OBJECTIVES / "cells").glob("*/config.yaml"):
            file.write_text(file.read_text().replace("beta: 2.5", "beta: 2.0"))
        before = contents(kept)
        refused = alphapo(*SWEEPS[OVER_OBJECTIVES], *LINE)
        assert refused.code == 2
        assert (
            "holds the cell objective=simpo with other settings (differs in: objective.beta: 2.0 there, 2.5 here)"
            in (refused.fault)
        )
        assert contents(kept) == before


class TestAChoiceOfAFileThatChanged:
    """conf/trainer/glassbox.yaml had another learning rate when the kept directories were made, and numerics rose since."""

    OTHER = ("learning_rate: 0.0008", "learning_rate: 0.0009")

    def test_the_line_says_what_differs_and_trains_nothing(self, alphapo, kept):
        file = kept / RUN / "config.yaml"
        file.write_text(file.read_text().replace(*self.OTHER))
        before = contents(kept)
        for more in ((), ("--json", "result.json"), ("run.dir=./runs",)):
            refused = alphapo(*OF_THE_RUN, *more)
            assert refused.code == 2
            assert f"runs/{RUN} holds a run with another configuration" in refused.fault
            assert "(differs in: trainer.learning_rate: 0.0009 there, 0.0008 here)" in refused.fault
            assert "type trainer.learning_rate=0.0009 to mean that one, choose another run.name, or start over" in (
                refused.fault
            )
        assert contents(kept) == before
        meant = alphapo(*OF_THE_RUN, "trainer.learning_rate=0.0009")
        assert (meant.code, meant.path.name, meant.out.splitlines()[1]) == (0, RUN, "complete")

    @pytest.mark.parametrize("why", ["another line", "no line", "todays numerics", "files of the user's own"])
    def test_otherwise_it_is_another_run(self, why, kept):
        """As long as numerics stay, a file that changed is the user's own, who knows."""
        file = kept / RUN / "config.yaml"
        file.write_text(file.read_text().replace(*self.OTHER))
        if why == "todays numerics":
            rewrite(kept / RUN / "manifest.json", numerics=max(format_version.NUMERICS))
        cfg = composed(*OF_THE_RUN[1:])
        cfg.run.dir = str(kept)
        words = ["alphapo", *OF_THE_RUN]
        if why == "files of the user's own":
            words += ["--config-dir", "mine"]
            rewrite(kept / RUN / "manifest.json", command=words)
        argv = {"another line": [*words, "seed=0"], "no line": ["script.py"]}.get(why, words)
        assert identity.find_run(cfg, argv).name == identity.run_name(cfg)

    @pytest.mark.parametrize("numerics", [1, max(format_version.NUMERICS)])
    def test_a_sweep_says_what_differs(self, numerics, alphapo, kept):
        file = kept / OVER_ALPHA / "sweep.json"
        record = json.loads(file.read_text())
        texts = [*SWEEPS[OVER_ALPHA][1:], *LINE]
        lines = [{**line, "texts": texts} for line in record["lines"]]
        base = {**record["base"], "trainer.learning_rate": 0.0009}
        rewrite(file, base=base, lines=lines, numerics=numerics)
        ran = alphapo(*SWEEPS[OVER_ALPHA], *LINE, "--dry-run")
        if numerics == 1:
            assert ran.code == 2
            assert "(differs in: trainer.learning_rate: 0.0009 there, 0.0008 here)" in ran.fault
        else:
            assert ran.out.count("pending") == 2


class TestNumerics:
    def test_they_are_numbered_without_gaps_and_each_says_something(self):
        assert list(format_version.NUMERICS) == list(range(1, len(format_version.NUMERICS) + 1))
        assert all(format_version.NUMERICS.values())

    def test_a_new_run_has_them_and_its_format(self, trained):
        manifest = json.loads((trained.path / "manifest.json").read_text())
        assert (manifest["format"], manifest["numerics"]) == (format_version.RUN_FORMAT, max(format_version.NUMERICS))

    def test_an_interrupted_run_does_not_go_on_under_others(self, alphapo, kept):
        rewrite(kept / RUN / "summary.json", state="interrupted")
        checkpoint = kept / RUN / "checkpoints" / "step-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "complete").touch()
        before = contents(kept)
        refused = alphapo(*OF_THE_RUN)
        assert refused.code == 2
        assert f"was interrupted and made under numerics 1 (now {NOW}: " in refused.fault
        assert "start over with --replace" in refused.fault
        assert contents(kept) == before

    def test_nor_under_the_lock_where_it_says_running(self, kept):
        rewrite(kept / RUN / "summary.json", state="running")
        checkpoint = kept / RUN / "checkpoints" / "step-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "complete").touch()
        directory = RunDirectory(kept / RUN)
        lock = acquire(directory.lock)
        try:
            with pytest.raises(UsageError, match="going on would mix"):
                directory.check(composed(*OF_THE_RUN[1:]), replace=False, locked=True)
        finally:
            lock.release()

    def test_one_that_has_no_checkpoint_begins_anew_under_todays(self, kept):
        rewrite(kept / RUN / "summary.json", state="interrupted")
        assert RunDirectory(kept / RUN).check(composed(*OF_THE_RUN[1:]), replace=False) == "interrupted"

    def test_those_of_a_newer_version_are_said_too(self, alphapo, kept):
        rewrite(kept / RUN / "manifest.json", numerics=99)
        assert "made under numerics 99 (by a newer alphapo" in alphapo(*OF_THE_RUN).err


class TestWhatIsToBeTyped:
    @pytest.mark.parametrize(
        "value", ["Be kind, and brief.", "null", "true", "3", "it's", "a=b", None, ["a,b", "c"], ""]
    )
    def test_it_means_what_was_stored(self, value):
        (word,) = shlex.split(str(identity.to_type({"data.system": (value, "other")})))
        assert parse([word])[0].value() == value


class TestFormat:
    @pytest.mark.parametrize("more", [(), ("--replace",)])
    def test_a_newer_one_is_refused(self, more, alphapo, kept):
        rewrite(kept / RUN / "manifest.json", format=3)
        before = contents(kept)
        refused = alphapo(*OF_THE_RUN, *more)
        assert refused.code == 2
        assert "was made by a newer alphapo (run format 3, this one reads 1 to 2): update alphapo" in refused.fault
        assert contents(kept) == before

    def test_an_older_one_is_refused_and_may_be_replaced(self, alphapo, kept, monkeypatch):
        monkeypatch.setattr(format_version, "OLDEST_FORMAT", 2)
        refused = alphapo(*OF_THE_RUN)
        assert refused.code == 2
        assert (
            "was made by an older alphapo (run format 1, this one reads 2): read it with version 0.1.0" in refused.fault
        )
        assert RunDirectory(kept / RUN).check(composed(*OF_THE_RUN[1:]), replace=True) == "pending"

    def test_a_newer_cell_is_refused(self, alphapo, kept):
        rewrite(next((kept / OVER_ALPHA / "cells").glob("*/manifest.json")), format=3)
        refused = alphapo(*SWEEPS[OVER_ALPHA], *LINE)
        assert refused.code == 2
        assert "run format 3, this one reads 1 to 2" in refused.fault

    def test_a_newer_run_is_no_model(self, kept):
        from alphapo_cli.modeling.locations import locate

        rewrite(kept / RUN / "manifest.json", format=3)
        with pytest.raises(UsageError, match=r"run format 3.*give another model\.path"):
            locate(str(kept / RUN))


def test_a_damaged_config_is_named(kept):
    (kept / RUN / "config.yaml").write_text("objective: [\n")
    with pytest.raises(UsageError, match=r"config\.yaml is damaged"):
        RunDirectory(kept / RUN).check(composed(*OF_THE_RUN[1:]), replace=False)

"""trainer.save_models_at and eval.at: models of several fractions of training, each kept, answered with and judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.stages import eval_at
from alphapo_cli.stages.plan import make_plan
from alphapo_cli.stages.train_generate_evaluate import _judge
from alphapo_cli.stages.training.kept_models import kept_steps, step_of
from tests import wandb_file
from tests.conftest import TINY, run_here
from tests.stages.test_resume import assert_same, killed_at, weights

STEPS = 12
# At a constant rate the first steps of a long run are a short run.
LINE = (
    f"trainer.max_steps={STEPS}", "probe.every=6", "trainer.save_steps=4", "trainer.lr_scheduler_type=constant",
    "trainer.warmup_ratio=0",
)  # fmt: skip
KEPT = "trainer.save_models_at=[0.5,0.25]"
ANSWERS = ("generation=transformers", "generation.max_new_tokens=12", "prompts.limit=24")


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def kept(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "models" / f"step-{step}" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("fraction", "total", "step"),
    [(0, 12, 0), (1, 12, 12), (0.25, 12, 3), (0.5, 13, 6), (0.01, 12, 1), (0.999, 12, 11), (0.5, 1, 1), (0.1, 2, 1)],
)
def test_the_step_of_a_fraction(fraction, total, step):
    assert step_of(fraction, total) == step


def test_a_step_is_kept_once_and_the_last_is_model():
    assert kept_steps([0.5, 0.26, 0.25, 0.99], 12) == (3, 6, 11)
    assert kept_steps([0.5], 1) == ()


class TestModels:
    def test_they_are_those_of_their_steps(self, alphapo, tiny):
        ran = alphapo("train", *tiny, *LINE, KEPT)
        assert ran.code == 0, ran.err
        assert sorted(path.name for path in (ran.path / "models").iterdir()) == ["step-3", "step-6"]
        short = alphapo("train", *tiny, *LINE, "trainer.max_steps=6")
        assert same(kept(ran.path, 6), weights(short.path))
        # Keeping them changes nothing of training.
        assert same(weights(ran.path), weights(alphapo("train", *tiny, *LINE).path))
        files = load(ran.path / "summary.json")["files"]
        assert "models/step-3/model.safetensors" in files
        (ran.path / "models" / "step-3" / "model.safetensors").unlink()
        again = alphapo("train", *tiny, *LINE, KEPT)
        assert again.code == 2
        assert "models/step-3/model.safetensors" in again.fault

    def test_one_that_has_changed_is_not_believed(self, alphapo, tiny):
        ran = alphapo("train", *tiny, *LINE, KEPT)
        file = ran.path / "models" / "step-3" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        for line in (("generate", str(file.parent), *ANSWERS[:2]), ("verify", str(ran.path))):
            refused = alphapo(*line)
            assert refused.code in (1, 2), line
            assert "models/step-3/model.safetensors: its content has changed" in refused.out + refused.err, line

    @pytest.mark.slow
    @pytest.mark.parametrize("step", [5, 7])
    def test_after_a_kill(self, step, alphapo, tiny):
        """Before the first checkpoint, at step 4; and after models of both kinds: before a checkpoint, and after it."""
        line = ["train", *tiny, *LINE, KEPT]
        whole = alphapo(*line, "run.name=whole")
        with killed_at(step):
            broken = alphapo(*line, "run.name=broken")
        assert broken.code == 1
        again = alphapo(*line, "run.name=broken")
        assert again.code == 0, again.err
        assert_same(whole.path, again.path)
        assert all(same(kept(whole.path, n), kept(again.path, n)) for n in (3, 6))

    @pytest.mark.slow
    def test_one_that_is_gone_is_missed(self, alphapo, tiny):
        line = ["train", *tiny, *LINE, KEPT]
        with killed_at(7):
            broken = alphapo(*line)
        (broken.path / "models" / "step-3").rename(broken.path.parent / "elsewhere")
        again = alphapo(*line)
        assert again.code == 2
        assert "models/step-3: the model of step 3, which trainer.save_models_at kept, is gone" in again.err


@pytest.fixture(scope="module")
def line():
    return ("run", *TINY, *LINE, *ANSWERS, "eval.at=[0,0.5,1]", "statistics.confidence=0.9")


@pytest.fixture(scope="module")
def first(tmp_path_factory, shared_cache, line):
    ran = run_here(line, tmp_path_factory.mktemp("run"), shared_cache)
    assert ran.code == 0, ran.err
    return ran


@pytest.mark.slow
class TestRun:
    def test_each_is_judged(self, first):
        rows = load(first.path / "outcome.json")["over_training"]
        assert [(row["step"], row["fraction"]) for row in rows] == [(0, 0.0), (6, 0.5), (12, 1.0)]
        names = ["glassbox-base", f"{first.path.name}-step-6", first.path.name]
        for row, name in zip(rows, names, strict=True):
            results = load(Path(row["eval"]) / "results.json")
            assert name in results["generator"]  # of two of one name the file is named, too
            assert row["metrics"]["eval/win_rate"] == results["win_rate"] / 100
            assert row["intervals"]["eval/win_rate"] == [end / 100 for end in results["win_rate_interval"]]
            assert (row["confidence"], row["intervals_over"]) == (0.9, "instructions")
        assert load(first.path / "outcome.json")["metrics"] == rows[-1]["metrics"]
        assert load(first.path / "outcome.json")["confidence"] == 0.9
        assert "(90 % over instructions)" in first.err
        assert "intervals: 90 % over instructions; KL" in first.err
        probe = {row["step"]: row for row in map(json.loads, (first.path / "metrics.jsonl").read_text().splitlines())
                 if "displacement/chosen" in row}  # fmt: skip
        assert [row["probe"]["displacement/chosen"] for row in rows] == [
            probe[step]["displacement/chosen"] for step in (0, 6, 12)
        ]
        assert (first.path / "outcome_over_training.png").stat().st_size > 10_000
        assert "3 models x 24 prompts: 72 judgements by glassbox" in first.err
        assert "50%" in first.err

    def test_the_page_of_the_run_has_them(self, first):
        page = (first.path / "report.html").read_text(encoding="utf-8")
        assert "<h2>Win rate over training</h2>" in page
        assert "<td>6</td><td>50%</td>" in page
        assert "intervals are 90 % over instructions." in page

    def test_the_answers_are_those_of_the_kept_model(self, first, shared_cache):
        """As `alphapo generate` answers with models/step-6 by itself."""
        folder = first.path.parent.parent
        ran = run_here(
            ("generate", str(first.path / "models" / "step-6"), *ANSWERS[:2], "data.limit=24"), folder, shared_cache
        )
        assert ran.code == 0, ran.err
        rows = load(first.path / "outcome.json")["over_training"]
        assert ran.path == Path(rows[1]["generate"])

    def test_it_joins_wandb(self, first):
        (file,) = wandb_file.live_files(first.path)
        keys = {key for row in wandb_file.read(file).history for key in row}
        assert {"over_training", "overlay/eval/win_rate over training"} <= {key.partition("_table")[0] for key in keys}

    def test_the_same_line_does_nothing(self, first, line, shared_cache, snapshot):
        before = snapshot(first.path.parent)
        again = run_here(line, first.path.parent.parent, shared_cache)
        assert (again.code, again.out.splitlines()[1:]) == (0, ["complete"])
        assert snapshot(first.path.parent) == before

    def test_more_of_them_cost_what_is_new(self, first, line, shared_cache, snapshot):
        """The end alone needs no model that was kept: it is the same run, and nothing is generated or judged again."""
        before = snapshot(first.path.parent)
        ran = run_here(
            (*line[:-2], line[-1], "trainer.save_models_at=[0.5]", "eval.at=[0,1]"),
            first.path.parent.parent,
            shared_cache,
        )
        assert ran.code == 0, ran.err
        assert ran.path == first.path
        after = snapshot(first.path.parent)
        made = {name: what for name, what in after.items() if Path(name).parts[0].startswith(("generate-", "eval-"))}
        assert made
        assert made == {name: before[name] for name in made}
        assert [row["step"] for row in load(first.path / "outcome.json")["over_training"]] == [0, 12]


@pytest.mark.parametrize(
    ("typed", "fractions"),
    [
        ("[0.3333333333333333]", (0.3333333333333333,)), ("[1.0e-9,0.9999999]", (1e-9, 0.9999999)), ("[1,0,1]", (0.0, 1.0)),
        ("0.5", (0.5,)), ("[0.00005]", (5e-05,)),
    ],
)  # fmt: skip
def test_fractions_are_kept_as_they_are(typed, fractions, alphapo, tmp_path):
    """And what is printed of a line reads back as the same."""
    shown = alphapo("run", f"eval.at={typed}", "--print-config")
    assert shown.code == 0, shown.err
    assert eval_at.take([f"eval.at={typed}"])[1] == fractions
    (tmp_path / "file.yaml").write_text(shown.out)
    again = alphapo("run", "--config", "file.yaml", "--print-config")
    assert (again.code, again.out) == (0, shown.out), again.err


def test_what_a_kept_step_measures_steers_nothing(alphapo, tiny):
    """Neither the best step nor how long one is waited for: step 6 is read for its model alone."""
    line = ("train", *tiny, *LINE, "probe.every=5", "trainer.load_best_model_at_end=true",
            "trainer.metric_for_best_model=kl/reference", "trainer.greater_is_better=true")  # fmt: skip
    plain, kept_too = alphapo(*line), alphapo(*line, "trainer.save_models_at=[0.5]")
    assert kept_too.code == 0, kept_too.err
    assert load(plain.path / "summary.json")["best"] == load(kept_too.path / "summary.json")["best"]
    assert same(weights(plain.path), weights(kept_too.path))
    with killed_at(9):
        alphapo(*line, "trainer.save_models_at=[0.5]", "run.name=broken")
    again = alphapo(*line, "trainer.save_models_at=[0.5]", "run.name=broken")
    assert load(again.path / "summary.json")["best"] == load(plain.path / "summary.json")["best"]


def test_room_is_held_for_what_is_still_to_be_saved(alphapo, tiny, monkeypatch):
    from alphapo_cli.stages.training.final_model import RESERVE, FinalModel

    sizes, back = [], FinalModel.give_back_one

    def watched(self):
        file = self.directory.path / RESERVE
        before = file.stat().st_size
        back(self)
        sizes.append((before, file.stat().st_size, self.one))

    monkeypatch.setattr(FinalModel, "give_back_one", watched)
    ran = alphapo("train", *tiny, *LINE, KEPT)
    assert ran.code == 0, ran.err
    (first, second, one), (third, last, _) = sizes
    assert (second, third, last) == (first - one, first - one, first - 2 * one)
    assert one <= last < 2 * one  # that of model/
    assert not (ran.path / RESERVE).exists()


@pytest.mark.slow
def test_of_one_step_every_fraction_above_0_is_the_end(alphapo, tiny):
    ran = alphapo("run", *tiny, "trainer.max_steps=1", *ANSWERS, "eval.at=[0.5]")
    assert ran.code == 0, ran.err
    assert [row["step"] for row in load(ran.path / "outcome.json")["over_training"]] == [1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval.at=[0,2]"], "needs a list of fractions of training from 0 to 1"),
        (["eval.at=half"], "needs a list of fractions of training from 0 to 1"),
        (["eval.at=[2020-13-45]"], "needs a list of fractions of training from 0 to 1"),
        (["--max-cost", "nan"], "needs an amount in USD"),
        (["--max-cost", "-5"], "needs an amount in USD"),
        (["eval.at=[]"], "needs a list of fractions of training from 0 to 1"),
        (["eval.at=[0.5]", "eval.at=[1]"], "is typed 2 times"),
        (["eval.when=[0.5]"], "eval.when=[0.5]: no such key; eval.at="),
        (["eval.at=[0.5]", "trainer.save_models_at=[0.5]"], "leave one of the two out"),
        (["trainer.save_models_at=[1]"], "1 is no fraction of training above 0 and below 1"),
        (["eval.at=[0,1]", "model=from_scratch", "data=glassbox", "--reference", "nothing.json"], "leave 0 out"),
    ],
)
def test_bad_input(words, says, alphapo, tmp_path):
    ran = alphapo("run", *words)
    assert ran.code == 2
    assert says in ran.fault
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("of_one", "spent", "limit"),
    [(None, 0.0, (5.0, 0.0)), (None, 1.2, (5.0, 1.2)), (3.0, 1.2, (3.0, 0.0)), (4.5, 1.2, (5.0, 1.2))],
)
def test_the_limit_of_a_run_counts_what_its_evaluations_before_took(of_one, spent, limit, monkeypatch, tmp_path):
    """So that messages name the limit that was typed; a limit of one evaluation alone counts where it is the tighter one."""
    seen = []

    def prepare(settings, inputs, **_):
        seen.append((settings.judge.max_cost, inputs.spent))
        raise KeyboardInterrupt

    monkeypatch.setattr("alphapo_cli.stages.evaluate.prepare", prepare)
    later = make_plan([], ["judge=openai", *([] if of_one is None else [f"judge.max_cost={of_one}"])], Sources())
    cfg = compose("train", TrainConfig, [], Sources())
    own = SimpleNamespace(outputs=lambda: tmp_path / "own.json")
    with pytest.raises(KeyboardInterrupt):
        _judge(replace(later, max_cost=5.0), cfg, own, tmp_path / "reference.json", None, spent)
    assert seen == [limit]

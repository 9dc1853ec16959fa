"""trainer.load_best_model_at_end and guard.patience: model/ is that of the best step, after a kill, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.stages.test_resume import assert_same, killed_at, weights

STEPS = 12
# At a constant rate the first steps of a long run are a short run. KL is least in the middle here, at step 8.
LINE = (
    f"trainer.max_steps={STEPS}", "probe.every=4", "probe.sample_every=6", "trainer.save_steps=3",
    "trainer.lr_scheduler_type=constant", "trainer.warmup_ratio=0",
)  # fmt: skip
BEST = ("trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=kl/reference")


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(theirs[name], p) for name, p in ours.items())


class TestModel:
    def test_it_is_that_of_the_best_step(self, alphapo, tiny, rows):
        best = alphapo("train", *tiny, *LINE, *BEST)
        assert best.code == 0, best.err
        found = summary(best.path)
        readings = {
            row["step"]: row["kl/reference"] for row in rows(best.path / "metrics.jsonl") if "kl/reference" in row
        }
        assert list(readings) == [0, 4, 8, 12]
        assert readings[8] < min(readings[4], readings[12])
        assert found["best"] == {"step": 8, "metric": "kl/reference", "value": readings[8]}
        short = alphapo("train", *tiny, *LINE, "trainer.max_steps=8")
        assert same_weights(best.path, short.path)
        assert (found["state"], found["step"]) == ("complete", STEPS)
        # What a sweep compares is of the model that it keeps.
        assert found["metrics"]["kl/reference"] == readings[8]
        assert "model/ is that of step 8 of 12, the best by kl/reference" in best.err
        assert "kept in best/ until the end" in best.err
        assert not (best.path / "best").exists()

    @pytest.mark.slow
    def test_without_a_reading_it_is_that_of_the_last_step(self, alphapo, tiny):
        """Weights that are no numbers, which the user asked to go on with: nothing of them is called best, or stale."""
        metric = ("trainer.metric_for_best_model=displacement/chosen", "trainer.greater_is_better=true")
        ran = alphapo("train", *tiny, *LINE, BEST[0], *metric, "trainer.learning_rate=1e30", "guard.non_finite=false")
        assert ran.code == 0, ran.err
        assert "model/ is that of the last step: displacement/chosen was a number at no step after 0" in ran.err
        assert "best" not in summary(ran.path) or summary(ran.path)["best"] is None
        (line,) = (line for line in ran.err.splitlines() if f": step {STEPS} of {STEPS}, " in line)
        assert "chosen nan" in line, line
        assert "loss nan" in line, line

    @pytest.mark.slow
    def test_of_equal_ones_it_is_the_first(self, alphapo, tiny):
        """No answer repeats itself at any reading."""
        best = alphapo("train", *tiny, *LINE, BEST[0], "trainer.metric_for_best_model=samples/repetition")
        assert best.code == 0, best.err
        assert summary(best.path)["best"] == {"step": 6, "metric": "samples/repetition", "value": 0.0}
        assert same_weights(best.path, alphapo("train", *tiny, *LINE, "trainer.max_steps=6").path)

    @pytest.mark.parametrize(
        ("step", "more"),
        [
            # Killed when best/ knows of step 8, and the checkpoint, of step 7, of step 4 alone.
            (8, ("trainer.save_steps=7",)),
            # After the best step; before and after the first checkpoint.
            pytest.param(9, (), marks=pytest.mark.slow),
            pytest.param(11, ("trainer.save_steps=10",), marks=pytest.mark.slow),
            pytest.param(5, ("trainer.save_steps=5",), marks=pytest.mark.slow),
            pytest.param(9, ("model.lora.r=4", "trainer.save_steps=4"), marks=pytest.mark.slow),
        ],
    )
    def test_after_a_kill(self, step, more, alphapo, tiny):
        line = ["train", *tiny, *LINE, *BEST, *more]
        whole = alphapo(*line, "run.name=whole")
        with killed_at(step):
            broken = alphapo(*line, "run.name=broken")
        assert broken.code == 1
        again = alphapo(*line, "run.name=broken")
        assert again.code == 0, again.err
        assert_same(whole.path, again.path)
        assert summary(whole.path)["best"] == summary(again.path)["best"]
        assert not (again.path / "best").exists()

    @pytest.mark.slow
    def test_what_is_kept_meanwhile_is_no_more_than_needed(self, alphapo, tiny, rows):
        line = ["train", *tiny, *LINE, *BEST, "trainer.greater_is_better=true", "probe.every=1"]
        with killed_at(11):
            broken = alphapo(*line, "trainer.save_steps=3")
        found = {row["step"]: row["kl/reference"] for row in rows(broken.path / "metrics.jsonl")}
        best = [max(range(1, last + 1), key=lambda step: found[step]) for last in (9, 11)]  # of the checkpoint, and now
        assert {path.name for path in (broken.path / "best").iterdir()} == {f"step-{step}" for step in best}

    @pytest.mark.slow
    def test_weights_that_are_gone_or_damaged_are_missed(self, alphapo, tiny):
        line = ["train", *tiny, *LINE, *BEST, "run.name=broken"]
        with killed_at(9):
            broken = alphapo(*line)
        kept = broken.path / "best" / "step-8"
        elsewhere = kept.rename(broken.path.parent / "kept")
        again = alphapo(*line)
        assert again.code == 2
        assert "the weights of step 8, the best so far by kl/reference, are gone" in again.err.splitlines()[-1]
        elsewhere.rename(kept)
        content = bytearray((kept / "state.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (kept / "state.pt").write_bytes(content)
        again = alphapo(*line)
        assert again.code == 1
        assert "best/step-8 is damaged" in again.err.splitlines()[-1]
        assert not (again.path / "model").exists()


class TestPatience:
    def test_it_ends_the_run(self, alphapo, tiny):
        ran = alphapo("train", *tiny, *LINE, BEST[1], "trainer.greater_is_better=true", "guard.patience=1")
        assert ran.code == 0, ran.err
        found = summary(ran.path)
        assert (found["state"], found["step"]) == ("stopped", 8)
        assert "kl/reference has not become better than" in found["reason"]
        assert "at step 4 in 1 reading(s) (guard.patience=1)" in found["reason"]
        assert "best" not in found  # model/ is that of step 8: nobody asked for another one

    @pytest.mark.slow
    def test_with_the_best_model(self, alphapo, tiny):
        ran = alphapo("train", *tiny, *LINE, *BEST, "guard.patience=1", "trainer.max_steps=40")
        found = summary(ran.path)
        assert (found["state"], found["step"], found["best"]["step"]) == ("stopped", STEPS, 8)
        assert same_weights(ran.path, alphapo("train", *tiny, *LINE, "trainer.max_steps=8").path)
        assert not (ran.path / "best").exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["trainer.load_best_model_at_end=true"], "Add trainer.metric_for_best_model=KEY"),
            (["guard.patience=3"], "guard.patience=3: of which metric?"),
            (["trainer.greater_is_better=true"], "trainer.greater_is_better: of which metric?"),
            (["trainer.metric_for_best_model=kl/reference"], "nothing reads it"),
            (["guard.patience=0", "trainer.metric_for_best_model=kl/reference"], "must be at least 1"),
            (["guard.patience=1", "trainer.metric_for_best_model=kl/referenc"], "did you mean 'kl/reference'"),
            (["guard.patience=1", "trainer.metric_for_best_model=train/loss"], "not measured on the probe"),
            (["guard.patience=1", "trainer.metric_for_best_model=eval/win_rate"], "not measured on the probe"),
            (["guard.patience=1", "trainer.metric_for_best_model=rewards/margins"], "is more of it better?"),
        ],
    )
    def test_is_refused_before_anything_is_read(self, words, says, alphapo):
        for command in (["train"], ["sweep", "alpha"], ["validate"]):
            ran = alphapo(*command, *words)
            assert (ran.code, says in ran.fault) == (2, True), ran.err

    def test_a_metric_that_the_run_does_not_measure(self, alphapo, tiny):
        ran = alphapo(
            "train",
            *tiny,
            *LINE,
            "guard.patience=1",
            "trainer.metric_for_best_model=pairs/ches",
            "trainer.greater_is_better=false",
        )
        assert ran.code == 2
        assert "this run does not measure it" in ran.err.splitlines()[-1]

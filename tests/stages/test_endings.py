"""Runs that do not end well: interrupted, diverged, or started over one that was."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time

import pytest
import torch


def summary(path):
    return json.loads((path / "summary.json").read_text())


def steps_written(path):
    return path.read_text().count("\n") if path.is_file() else 0


class TestInterrupted:
    @pytest.fixture
    def stopped(self, alphapo, tiny, tmp_path, interrupt):
        interrupt(lambda: steps_written(tmp_path / "runs" / "x" / "metrics.jsonl") >= 3)
        return alphapo("train", *tiny, "run.name=x", "trainer.max_steps=40", "probe.every=20", "probe.samples=0")

    def test_by_sigterm(self, stopped, rows):
        assert stopped.code == 130
        assert stopped.err.splitlines()[-1].startswith("alphapo: interrupted at step ")
        assert "the same line" in stopped.err
        found = summary(stopped.path)
        assert found["state"] == "interrupted"
        assert found["metrics"]["displacement/chosen"] == 0  # the last reading, at step 0
        assert 2 <= found["step"] < 40
        steps = [row["step"] for row in rows(stopped.path / "metrics.jsonl")]
        assert steps == list(range(len(steps)))
        assert not (stopped.path / "model").exists()

    def test_before_anything_is_written(self, alphapo, tiny, tmp_path, interrupt, monkeypatch):
        """While data are read: one line all the same, and no directory."""
        from alphapo_cli.stages.training import inputs

        reading = []

        def read_slowly(*given):
            reading.append(1)
            # Short sleeps: CPython looks for signals before it hands the interpreter lock to a waiting thread and not
            # after, so one that this test's own thread sends in that moment meets a sleep about to begin.
            for _ in range(600):
                time.sleep(0.1)

        monkeypatch.setattr(inputs, "load_text", read_slowly)
        interrupt(lambda: bool(reading))
        ran = alphapo("train", *tiny, "run.name=x")
        assert (ran.code, ran.err.splitlines()[-1]) == (130, "alphapo: interrupted")
        assert not (tmp_path / "runs").exists()

    @pytest.mark.slow
    def test_the_same_line_gives_what_an_uninterrupted_run_gives(self, stopped, alphapo, tiny):
        line = ["train", *tiny, "trainer.max_steps=40", "probe.every=20", "probe.samples=0"]
        again, other = alphapo(*line, "run.name=x"), alphapo(*line, "run.name=y")
        assert (again.code, again.path) == (0, stopped.path)
        assert summary(again.path)["state"] == "complete"
        assert (again.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("behind", [False, True], ids=["", "started behind a script's &"])
def test_a_process_of_its_own_is_stopped(number, behind, tmp_path, shared_cache, tiny, fork_server):
    """The ones behind a script's & start cold: what they ignore is there before Python is."""
    from tests.conftest import entry_point, environment

    line = [*entry_point(), "train", *tiny, "tracking.mode=offline", "run.name=x", "trainer.max_steps=5000"]
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    start = functools.partial(subprocess.Popen, **ignoring) if behind else fork_server.popen
    with start(
        line, cwd=tmp_path, env=environment(shared_cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while steps_written(tmp_path / "runs" / "x" / "metrics.jsonl") < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("alphapo: interrupted at step ")
    assert summary(tmp_path / "runs" / "x")["state"] == "interrupted"


def test_a_picture_that_cannot_be_drawn_costs_no_run(alphapo, tiny, monkeypatch):
    def broken(*_):
        raise ValueError("no font")

    monkeypatch.setattr("alphapo_cli.plots.figures.run_curves", broken)
    ran = alphapo("train", *(x for x in tiny if "pictures" not in x))
    assert ran.code == 0
    assert summary(ran.path)["state"] == "complete"
    assert "note: curves.png was not drawn (" in ran.err


class TestDiverged:
    def test_a_loss_that_is_not_a_number_fails_the_run_with_its_reason(self, alphapo, scratch_line, rows):
        ran = alphapo(
            "train", *scratch_line, "objective=cpo", "trainer.learning_rate=1e30", "trainer.max_steps=20",
            "trainer.warmup_ratio=0", "trainer.max_grad_norm=0", "probe.every=20",
        )  # fmt: skip
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert last.startswith("alphapo: the loss is ")
        assert "lower trainer.learning_rate or objective.beta" in last
        found = summary(ran.path)
        assert found["state"] == "failed"
        assert found["reason"] == last.removeprefix("alphapo: ")
        assert rows(ran.path / "metrics.jsonl")[0]["step"] == 0  # strict JSON throughout
        assert "Traceback" not in ran.err

    def test_the_same_line_tries_again(self, alphapo, scratch_line):
        line = [*scratch_line, "objective=cpo", "trainer.learning_rate=1e30", "trainer.max_steps=20", "run.name=x"]
        line += ["trainer.warmup_ratio=0", "trainer.max_grad_norm=0"]
        first, second = alphapo("train", *line), alphapo("train", *line)
        assert (first.code, second.code) == (1, 1)
        assert summary(second.path)["reason"] == summary(first.path)["reason"]

    @pytest.mark.parametrize(
        ("weight", "value", "reason"),
        [("model.norm.weight", "nan", "a log-prob of the probe is nan at step 2"),
         ("unused", "nan", "weight unused is nan at step 2"), ("unused", "-inf", "weight unused is -inf at step 2")],
    )  # fmt: skip
    def test_a_last_step_that_breaks_the_model_is_a_failed_run(self, weight, value, reason, alphapo, tiny, monkeypatch):
        """Also where the broken weight is one that no probe token goes through."""
        from alphapo_cli.modeling.policy import PolicyModel
        from alphapo_cli.stages.training.session import TrainingSession

        made, measure = PolicyModel.__init__, TrainingSession.measure

        def with_unused(self, lm, **settings):
            made(self, lm, **settings)
            lm.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))

        def breaking(self, step):
            if step == 2:
                self.trainer.policy.lm.get_parameter(weight).data.fill_(float(value))
            return measure(self, step)

        monkeypatch.setattr(PolicyModel, "__init__", with_unused)
        monkeypatch.setattr(TrainingSession, "measure", breaking)
        ran = alphapo("train", *tiny, "trainer.max_steps=2")
        assert ran.code == 1
        assert ran.err.splitlines()[-1].startswith(f"alphapo: {reason}")
        assert summary(ran.path)["state"] == "failed"
        assert not (ran.path / "model").exists()

    @pytest.mark.slow
    def test_huge_beta_and_alpha_stay_finite(self, alphapo, tiny, rows):
        """The extremes that the objectives promise: beta 100, |alpha| 4."""
        for alpha in (-4, 4):
            ran = alphapo(
                "train", *tiny, "objective.beta=100", f"objective.shape.alpha={alpha}", "trainer.max_steps=2",
                "probe.samples=0",
            )  # fmt: skip
            assert ran.code == 0, ran.err
            for row in rows(ran.path / "metrics.jsonl")[1:]:
                assert row["train/loss"] is not None
                assert row["train/grad_norm"] is not None


def test_an_error_of_a_library_is_one_line_and_recorded(alphapo, tiny, monkeypatch, tmp_path):
    from alphapo_cli.probe.probe import Probe

    def broken(self, policy, context, observer=None):
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr(Probe, "measure", broken)
    ran = alphapo("train", *tiny, "run.name=x")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("alphapo: RuntimeError: out of memory")
    assert "second line" not in ran.err
    assert summary(tmp_path / "runs" / "x")["state"] == "failed"
    assert summary(tmp_path / "runs" / "x")["reason"].startswith("RuntimeError: out of memory")


class TestGuards:
    """Limits stop a run: it keeps its model and checkpoint, says why, and is neither repeated nor a failure."""

    @pytest.mark.slow
    def test_a_fall_of_the_chosen_log_prob(self, alphapo, tiny, rows):
        line = ["train", *tiny, "trainer.max_steps=40", "trainer.learning_rate=1e-3", "guard.max_chosen_drop=0.001"]
        ran = alphapo(*line)
        assert ran.code == 0, ran.err
        found = summary(ran.path)
        assert found["state"] == "stopped"
        assert found["step"] < 40
        assert "guard.max_chosen_drop=0.001" in found["reason"]
        assert f"stopped: {found['reason']}" in ran.err
        fell = [row for row in rows(ran.path / "metrics.jsonl") if row.get("displacement/chosen", 0) < -0.001]
        assert [row["step"] for row in fell] == [found["step"]]  # at the first reading beyond the limit
        assert (ran.path / "model" / "model.safetensors").is_file()
        assert (ran.path / "checkpoints" / f"step-{found['step']}" / "complete").is_file()
        again = alphapo(*line)
        assert (again.code, again.out.splitlines()[1]) == (0, f"stopped: {found['reason']}")
        assert summary(ran.path) == found

    def test_the_gradient_norm(self, alphapo, tiny):
        ran = alphapo("train", *tiny, "guard.max_gradient_norm=1e-9")
        assert ran.code == 0, ran.err
        found = summary(ran.path)
        assert (found["state"], found["step"]) == ("stopped", 1)
        assert "guard.max_gradient_norm=1e-09" in found["reason"]

    def test_repetition(self):
        from alphapo_cli.config.schema import GuardConfig
        from alphapo_cli.probe.sampled_answers import repetition
        from alphapo_cli.training.guards import crossed

        # abcd abcd: of the five 4-grams the last is the first again.
        assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
        assert repetition([7] * 104) == pytest.approx(100 / 101)
        assert repetition([1, 2, 3]) == 0
        row = {"samples/repetition": 0.3}
        assert crossed(GuardConfig(max_repetition=0.3), row, 8) is None
        reason = crossed(GuardConfig(max_repetition=0.25), row, 8)
        assert reason is not None
        assert "30.0%" in reason

    def test_none_is_looked_at_by_default(self, trained):
        assert summary(trained.path)["state"] == "complete"

    @pytest.mark.parametrize("value", ["-1", "0", "abc"])
    def test_nonsense_is_refused(self, value, alphapo):
        ran = alphapo("train", f"guard.max_chosen_drop={value}")
        assert (ran.code, "guard.max_chosen_drop" in ran.fault) == (2, True)

"""Runs that do not end well: interrupted, diverged, or started over one that was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest


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
        assert (found["state"], found["metrics"]) == ("interrupted", {})
        assert 2 <= found["step"] < 40
        steps = [row["step"] for row in rows(stopped.path / "metrics.jsonl")]
        assert steps == list(range(len(steps)))
        assert not (stopped.path / "model").exists()

    def test_before_anything_is_written(self, alphapo, tiny, tmp_path, interrupt, monkeypatch):
        """While data are read: one line all the same, and no directory."""
        from alphapo_cli.stages import workshop

        reading = []

        def read_slowly(*_):
            reading.append(1)
            time.sleep(60)

        monkeypatch.setattr(workshop, "load_text", read_slowly)
        interrupt(lambda: bool(reading))
        ran = alphapo("train", *tiny, "run.name=x")
        assert (ran.code, ran.err.splitlines()[-1]) == (130, "alphapo: interrupted")
        assert not (tmp_path / "runs").exists()

    def test_the_same_line_gives_what_an_uninterrupted_run_gives(self, stopped, alphapo, tiny):
        line = ["train", *tiny, "trainer.max_steps=40", "probe.every=20", "probe.samples=0"]
        again, other = alphapo(*line, "run.name=x"), alphapo(*line, "run.name=y")
        assert (again.code, again.path) == (0, stopped.path)
        assert summary(again.path)["state"] == "complete"
        assert (again.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_of_its_own_is_stopped(number, tmp_path, shared_cache, tiny):
    from conftest import entry_point, environment

    line = [*entry_point(), "train", *tiny, "tracking.mode=offline", "run.name=x", "trainer.max_steps=5000"]
    with subprocess.Popen(
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


class TestDiverged:
    def test_a_loss_that_is_not_a_number_fails_the_run_with_its_reason(self, alphapo, scratch_line, rows):
        ran = alphapo(
            "train", *scratch_line, "objective=cpo", "trainer.learning_rate=1e30", "trainer.max_steps=20",
            "trainer.warmup_ratio=0", "trainer.max_grad_norm=0",
        )  # fmt: skip
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert last.startswith("alphapo: the loss is ")
        assert "lower trainer.learning_rate or objective.beta" in last
        found = summary(ran.path)
        assert (found["state"], found["metrics"]) == ("failed", {})
        assert found["reason"] == last.removeprefix("alphapo: ")
        assert rows(ran.path / "metrics.jsonl")[0]["step"] == 0  # strict JSON throughout
        assert "Traceback" not in ran.err

    def test_the_same_line_tries_again(self, alphapo, scratch_line):
        line = [*scratch_line, "objective=cpo", "trainer.learning_rate=1e30", "trainer.max_steps=20", "run.name=x"]
        line += ["trainer.warmup_ratio=0", "trainer.max_grad_norm=0"]
        first, second = alphapo("train", *line), alphapo("train", *line)
        assert (first.code, second.code) == (1, 1)
        assert summary(second.path)["reason"] == summary(first.path)["reason"]

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
    from alphapo_cli.probe import Probe

    def broken(self, policy):
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr(Probe, "measure", broken)
    ran = alphapo("train", *tiny, "run.name=x")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("alphapo: RuntimeError: out of memory")
    assert "second line" not in ran.err
    assert summary(tmp_path / "runs" / "x")["state"] == "failed"
    assert summary(tmp_path / "runs" / "x")["reason"].startswith("RuntimeError: out of memory")

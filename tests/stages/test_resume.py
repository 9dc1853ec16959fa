"""A run that was stopped goes on where it was, and ends as if nothing had happened: to the last bit."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

STEPS = 12  # of 8 pairs, out of 52: mid-epoch 2
LINE = (
    f"trainer.max_steps={STEPS}", "probe.every=4", "probe.sample_every=6", "trainer.save_steps=1",
    "trainer.logging_steps=3", "trainer.save_total_limit=2",
)  # fmt: skip
KINDS = {
    "alphapo": (),
    "accumulation": ("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"),
    "reference": ("objective=dpo",),
    "lora with dropout": ("model.lora.r=4", "model.lora.dropout=0.2"),
    "sgd": ("trainer.optim=sgd",),
    "moving reference": ("objective=tr_dpo", "objective.reference_every=2", "objective.beta=0.5"),
    # A controller that follows the probe, and statistics of whole steps over two micro-batches.
    "memory": (
        "objective=kto_pair",
        "objective/shape=power",
        "objective.shape.convention=ratio",
        "objective/schedule=adaptive",
        "objective.schedule.gain=20",
        "objective.beta=0.5",
        "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=2",
    ),
    "quantised": (
        "model.quantization=nf4",
        "model.lora.r=4",
        "objective=tr_dpo",
        "objective.reference_every=2",
        "objective.beta=0.5",
    ),
    "8-bit optimizer": ("trainer.optim=adamw_8bit",),
    # Pairs and tokens drawn by seed, step and pair.
    "draws": ("objective=beta_dpo", "objective/token=sampled", "objective.beta=0.5"),
}
QUICK = [("alphapo", 1), ("lora with dropout", 9), ("quantised", 9), ("8-bit optimizer", 9)]
WITH = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra quant)"
)
NEEDS_BITSANDBYTES = ("quantised", "8-bit optimizer")


def marks_of(kind: str, step: int) -> list[pytest.MarkDecorator]:
    slow = [] if (kind, step) in QUICK else [pytest.mark.slow]
    return [*slow, WITH] if kind in NEEDS_BITSANDBYTES else slow


def record(path: Path) -> dict[str, bytes]:
    """Every byte of a run that configuration and seed decide."""
    files = [path / "metrics.jsonl", path / "probe.jsonl", path / "prompts.json", *sorted(path.glob("samples/*.json"))]
    return {file.name: file.read_bytes().replace(path.name.encode(), b"NAME") for file in files}


def weights(path: Path) -> dict[str, torch.Tensor]:
    (file,) = (path / "model").glob("*.safetensors")
    return load_file(file)


def assert_same(one: Path, other: Path) -> None:
    assert record(one) == record(other)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    ends = [json.loads((p / "summary.json").read_text()) for p in (one, other)]
    for end in ends:
        del end["cost"], end["files"], end["checksum"]  # samples name the run
    assert ends[0] == ends[1]


class Killed(Exception):
    pass


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Training ends, as by a kill, right after step `step` has been recorded (and saved, where it is saved)."""
    from alphapo_cli.stages.training.session import TrainingSession
    from alphapo_cli.training.trainer import PreferenceTrainer

    after = PreferenceTrainer.after_step

    def once(self, now):
        stop = after(self, now)
        if now == step:
            raise Killed
        return stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceTrainer, "after_step", once)
        patch.setattr(TrainingSession, "_end", lambda *args: {})  # a killed process writes no ending
        yield


# The first step, and one in the second epoch between two logs.
@pytest.mark.parametrize(
    ("kind", "step"),
    [pytest.param(kind, step, marks=marks_of(kind, step)) for kind in KINDS for step in (1, 9)],
)
def test_a_killed_run_ends_as_an_undisturbed_one(kind, step, alphapo, tiny, rows):
    line = ["train", *tiny, *LINE, *KINDS[kind]]
    whole = alphapo(*line, "run.name=whole")
    assert whole.code == 0, whole.err
    with killed_at(step):
        broken = alphapo(*line, "run.name=broken")
    assert broken.code == 1
    assert json.loads((broken.path / "summary.json").read_text())["state"] == "running"  # nobody wrote the end
    again = alphapo(*line, "run.name=broken")
    assert again.code == 0, again.err
    assert f"continues at step {step} of {STEPS}" in again.err
    assert_same(whole.path, again.path)
    assert not (again.path / "checkpoints").exists()


@pytest.mark.slow
def test_what_was_recorded_after_the_checkpoint_is_cut(alphapo, tiny, rows):
    line = ["train", *tiny, *LINE, "trainer.save_steps=5"]
    with killed_at(9):
        broken = alphapo(*line, "run.name=broken")
    assert rows(broken.path / "metrics.jsonl")[-1]["step"] == 9
    again = alphapo(*line, "run.name=broken")
    assert "continues at step 5" in again.err
    assert [row["step"] for row in rows(again.path / "metrics.jsonl")] == [0, 3, 4, 6, 8, 9, 12]
    assert sorted({row["step"] for row in rows(again.path / "probe.jsonl")}) == [0, 4, 8, 12]
    assert_same(alphapo(*line, "run.name=whole").path, again.path)


@pytest.mark.slow
def test_a_kill_does_not_undo_a_guards_stop(alphapo, tiny):
    """Killed after the guard has spoken and before that is on record, a run stops at the same step again."""
    line = ["train", *tiny, *LINE, "guard.max_chosen_drop=1e-12", "objective=ipo", "objective.beta=0.01"]
    whole = alphapo(*line, "run.name=whole")
    end = json.loads((whole.path / "summary.json").read_text())
    assert (end["state"], end["step"]) == ("stopped", 4), whole.err
    with killed_at(4):
        broken = alphapo(*line, "run.name=broken")
    assert broken.code == 1
    again = alphapo(*line, "run.name=broken")
    assert again.code == 0, again.err
    assert_same(whole.path, again.path)


@pytest.mark.slow
def test_stopped_while_it_gets_ready_to_go_on(alphapo, tiny, rows, monkeypatch):
    """The summary says how far the run has come and what its last probe found, not what this attempt did: nothing."""
    from alphapo_cli.stages.training.session import TrainingSession

    line = ["train", *tiny, *LINE, "run.name=broken"]
    with killed_at(6):
        broken = alphapo(*line)
    probe = {r["step"]: r for r in rows(broken.path / "metrics.jsonl")}[4]["displacement/chosen"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingSession, "_prepare", interrupted)
    again = alphapo(*line)
    assert again.code == 130
    assert "interrupted at step 6" in again.err
    end = json.loads((again.path / "summary.json").read_text())
    assert (end["state"], end["step"], end["metrics"]["displacement/chosen"]) == ("interrupted", 6, probe)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=["Ctrl-C", "another process died"])
def test_nothing_behind_the_end_takes_a_result_back(error, alphapo, tiny, monkeypatch):
    """Neither a second Ctrl-C while checkpoints are removed nor a process of several that is gone by then."""
    from alphapo_cli.runs.checkpoints import Checkpoints

    remove = Checkpoints.remove

    def then_fails(self, lock):
        remove(self, lock)
        raise error

    line = ["train", *tiny, "run.name=x"]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "remove", then_fails)
        first = alphapo(*line)
    assert first.code == (130 if error is KeyboardInterrupt else 1)
    end = (first.path / "summary.json").read_bytes()
    assert json.loads(end)["state"] == "complete"
    assert alphapo(*line).code == 0
    assert (first.path / "summary.json").read_bytes() == end


def test_a_model_that_a_kill_left_half_written_is_none(alphapo, tiny, monkeypatch):
    """Weights and tokenizer without the generation config that says where an answer ends would be used as they are."""
    from transformers import GenerationConfig

    from alphapo_cli.stages.training.session import TrainingSession

    save = GenerationConfig.save_pretrained

    def killed(config, folder, **settings):
        if Path(folder).name == ".model.000001":  # the trained one
            raise Killed
        save(config, folder, **settings)

    line = ["train", *tiny, "run.name=x", "trainer.max_steps=2", "trainer.save_steps=1", "probe.samples=0"]
    with monkeypatch.context() as patch:
        patch.setattr(GenerationConfig, "save_pretrained", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
        patch.setattr(TrainingSession, "_end", lambda *_: {})
        broken = alphapo(*line)
    assert broken.code == 1
    assert not (broken.path / "model").exists()
    refused = alphapo("generate", "runs/x")
    assert refused.code == 2
    assert "its training did not end" in refused.fault
    again = alphapo(*line)
    assert again.code == 0, again.err
    assert (again.path / "model" / "generation_config.json").is_file()
    assert not list(again.path.glob(".model*"))


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_seen(alphapo, tiny):
    line = ["train", *tiny, *LINE]
    with killed_at(7):
        broken = alphapo(*line, "run.name=broken")
    folder = broken.path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-6", "step-7"]  # save_total_limit
    (folder / "step-7" / "complete").unlink()
    (folder / ".step-8.abc").mkdir()
    again = alphapo(*line, "run.name=broken")
    assert "continues at step 6" in again.err
    assert_same(alphapo(*line, "run.name=whole").path, again.path)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_named(alphapo, tiny):
    line = ["train", *tiny, *LINE, "run.name=broken"]
    with killed_at(7):
        broken = alphapo(*line)
    file = broken.path / "checkpoints" / "step-7" / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])
    shutil.rmtree(broken.path / "checkpoints" / "step-6")
    again = alphapo(*line)
    assert again.code == 1
    assert "checkpoints/step-7 is damaged (state.pt: 1000 bytes instead of" in again.err
    assert "there is no earlier one that is whole; restore it from a copy, or start over with --replace" in again.err
    assert "weights_only" not in again.err
    assert alphapo(*line, "--replace").code == 0


@pytest.mark.slow
def test_settings_of_saving_are_not_another_run(alphapo, tiny):
    line = ["train", *tiny, *LINE, "run.name=broken"]
    with killed_at(7):
        alphapo(*line)
    assert alphapo(*line, "trainer.save_steps=3").code == 0


def test_other_data_is_not_continued(alphapo, scratch_line, pairs, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = pairs["dialogue"].read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    line = ["train", *scratch_line, f"data.path={data}", "trainer.save_steps=1", "run.name=x"]
    with killed_at(1):
        alphapo(*line)
    data.write_text("".join(reversed(lines)))
    again = alphapo(*line)
    assert again.code == 2
    last = again.err.splitlines()[-1]
    assert "was begun on other data" in last
    assert "--replace" in last


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["model.path", pytest.param("model.reference", marks=pytest.mark.slow)])
def test_other_weights_are_not_continued(setting, alphapo, tiny, tmp_path):
    """Displacement is measured from the weights that training started from, and rewards from the reference."""
    assert alphapo("train", *tiny, "trainer.max_steps=1", "run.name=start").code == 0
    shutil.copytree(tmp_path / "runs" / "start" / "model", tmp_path / "start")
    world = ["data=glassbox", "trainer=glassbox"]
    line = ["train", *tiny, *world, *LINE, "objective=dpo", f"{setting}=start", "run.name=x"]
    with killed_at(2):
        alphapo(*line)
    file = tmp_path / "start" / "model.safetensors"
    same = file.read_bytes()
    save_file({name: 1.01 * w for name, w in load_file(file).items()}, file, metadata={"format": "pt"})
    again = alphapo(*line)
    assert again.code == 2
    last = again.err.splitlines()[-1]
    assert f"was begun from other weights ({setting} changed since)" in last
    assert "--replace" in last
    file.write_bytes(same)
    assert alphapo(*line).code == 0  # nothing was lost


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alphapo", pytest.param("reference", marks=pytest.mark.nightly), "lora with dropout"])
def test_kill_9_at_any_moment(kind, tmp_path, shared_cache, tiny, fork_server):
    """Also while a checkpoint is written: every step saves one, and the process is killed at growing delays.

    The whole run starts cold, so that it has another seed of hashes than those that are killed.
    """
    from tests.conftest import entry_point, environment

    line = [*entry_point(), "train", *tiny, *LINE, *KINDS[kind]]
    env = environment(shared_cache)
    subprocess.run([*line, "run.name=whole"], cwd=tmp_path, env=env, check=True, capture_output=True)
    metrics = tmp_path / "runs" / "broken" / "metrics.jsonl"
    for kill in range(6):
        with fork_server.popen(
            [*line, "run.name=broken"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            before = metrics.stat().st_size if metrics.is_file() else 0
            while process.poll() is None and (not metrics.is_file() or metrics.stat().st_size <= before):
                time.sleep(0.002)
            time.sleep(0.013 * kill)
            os.kill(process.pid, signal.SIGKILL)
    last = fork_server.run([*line, "run.name=broken"], cwd=tmp_path, env=env)
    assert last.returncode == 0, last.stderr
    assert_same(tmp_path / "runs" / "whole", tmp_path / "runs" / "broken")


class TestTwoProcesses:
    @pytest.mark.slow
    def test_the_second_is_refused_while_the_first_works(self, alphapo, tiny, tmp_path):
        from alphapo_cli.storage.run_lock import RunLock, acquire

        line = ["train", *tiny, "run.name=x"]
        claim = acquire(tmp_path / "runs" / "x" / ".claim")
        assert isinstance(claim, RunLock)
        second = alphapo(*line)
        assert second.code == 2
        assert f"process {os.getpid()} on " in second.fault
        assert "is working on this run" in second.fault
        claim.release()
        assert alphapo(*line).code == 0

    def test_an_owner_that_was_replaced_stops_before_its_next_write(self, alphapo, tiny, tmp_path, monkeypatch):
        from alphapo_cli.stages.training import session

        measure = session.TrainingSession.measure

        def stolen(self, step):
            if step == 2:
                os.rename(self.lock.path, self.lock.path.with_suffix(".dead"))
            return measure(self, step)

        monkeypatch.setattr(session.TrainingSession, "measure", stolen)
        ran = alphapo("train", *tiny, "run.name=x", "probe.every=1")
        assert ran.code == 1
        assert "another process has taken over" in ran.err
        metrics = (tmp_path / "runs" / "x" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == [0, 1]
        assert json.loads((tmp_path / "runs" / "x" / "summary.json").read_text())["state"] == "running"

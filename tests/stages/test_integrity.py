"""Bytes that come back from disk are compared with what was written: other bytes never make other numbers in silence."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.stages.test_resume import LINE, assert_same, killed_at, record, weights

EVERY_DAY = {("metrics.jsonl", "a row"), ("probe.jsonl", "a bit")}
DPO = "objective=dpo"  # reads reference log-probs


def flip(file: Path, rng: random.Random) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(8 * len(content))
    content[at // 8] ^= 1 << at % 8
    file.write_bytes(bytes(content))


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


DAMAGE = {"a bit": flip, "its end": truncate, "all": lambda file, rng: file.unlink()}


@pytest.fixture
def broken(alphapo, tiny):
    """The line of an interrupted run, and its directory as it was left, at step 7 with the checkpoints of 6 and 7."""
    line = ["train", *tiny, *LINE, DPO, "run.name=broken"]
    with killed_at(7):
        path = alphapo(*line).path
    return line, path


@pytest.fixture
def whole(alphapo, tiny):
    ran = alphapo("train", *tiny, *LINE, DPO, "run.name=whole")
    assert ran.code == 0, ran.err
    return ran.path


@pytest.mark.slow
@pytest.mark.parametrize("damage", [d if d == "a bit" else pytest.param(d, marks=pytest.mark.slow) for d in DAMAGE])
@pytest.mark.parametrize("name", ["state.pt", pytest.param("complete", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_not_gone_on_from(name, damage, alphapo, broken, whole):
    """The one before it is, and the run ends as it would have."""
    line, path = broken
    DAMAGE[damage](path / "checkpoints" / "step-7" / name, random.Random(1))
    again = alphapo(*line)
    assert again.code == 0, again.err
    if name == "state.pt":
        assert "step-7 is damaged (state.pt: " in again.err
        assert "removed, going on from step 6" in again.err
    assert_same(whole, path)


@pytest.mark.slow
def test_a_marker_that_is_damaged_says_so_in_a_run_begun_anew(alphapo, tiny):
    """Nothing is known of its generation then: it is no reason to take the checkpoint for another process's."""
    line = ["train", *tiny, *LINE, DPO, "run.name=broken"]
    with killed_at(7):
        alphapo(*line)
    with killed_at(7):
        path = alphapo(*line, "--replace").path
    flip(path / "checkpoints" / "step-7" / "complete", random.Random(1))
    again = alphapo(*line)
    assert again.code == 0, again.err
    assert "step-7 is damaged (complete: cannot be read); removed, going on from step 6" in again.err


@pytest.mark.parametrize(
    "kind",
    ["reference/*.npy", pytest.param("tokens/*/tokens.npz", marks=pytest.mark.slow), "base/*/model.safetensors"],
)
@pytest.mark.parametrize("damage", [d if d == "a bit" else pytest.param(d, marks=pytest.mark.slow) for d in DAMAGE])
def test_a_damaged_entry_of_the_cache_is_made_again(kind, damage, alphapo, tiny, shared_cache, tmp_path, monkeypatch):
    from alphapo_cli.stages.training import glassbox_base

    key = glassbox_base.base_key()  # under which the shared cache has one of fewer demonstrations
    monkeypatch.setattr(glassbox_base, "DEMONSTRATIONS", glassbox_base.DEMONSTRATIONS // 10)
    monkeypatch.setattr(glassbox_base, "base_key", lambda: key)
    line, cache = ["train", *tiny, DPO], shutil.copytree(shared_cache, tmp_path / "cache")
    first = alphapo(*line, "run.name=run-1", cache=cache)
    assert first.code == 0, first.err
    kept = record(first.path), weights(first.path)
    files = sorted(cache.glob(kind))
    assert files
    for file in files:
        DAMAGE[damage](file, random.Random(2))
    again = alphapo(*line, "run.name=run-2", cache=cache)
    assert again.code == 0, again.err
    assert record(again.path) == kept[0]
    assert all((weights(again.path)[name] == tensor).all() for name, tensor in kept[1].items())
    if damage == "a bit":
        assert "is damaged" in again.err
    assert not list(cache.rglob(".*"))  # nothing is left beside
    third = alphapo(*line, "run.name=run-3", cache=cache)
    assert "is damaged" not in third.err


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, marks=[] if (name, damage) in EVERY_DAY else [pytest.mark.slow])
        for name in ("metrics.jsonl", "probe.jsonl")
        for damage in ("a row", "a bit", "all")
    ],
)
def test_a_record_with_holes_is_refused(name, damage, alphapo, broken):
    line, path = broken
    file = path / name
    good = file.read_bytes()
    if damage == "a row":
        lines = good.splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:1] + lines[2:]))
    elif damage == "a bit":
        file.write_bytes(good.replace(b"0", b"8", 1))
    else:
        file.unlink()
    refused = alphapo(*line)
    assert refused.code == 2
    last = refused.err.splitlines()[-1]
    assert f"{name}: the " in last
    assert "rows up to the last checkpoint are not those that were written" in last
    file.write_bytes(good)
    assert alphapo(*line).code == 0  # nothing was lost


class TestComplete:
    @pytest.fixture
    def run(self, alphapo, tiny, tmp_path):
        ran = alphapo("train", *tiny, "trainer.max_steps=1", "probe.samples=0", "run.name=x")
        assert ran.code == 0, ran.err
        return ran.path

    @pytest.fixture
    def line(self, tiny):
        return ["train", *tiny, "trainer.max_steps=1", "probe.samples=0", "run.name=x"]

    def test_verified(self, run, line, alphapo):
        assert alphapo(*line).code == 0
        ran = alphapo("verify", "runs/x", "--json", "-")
        assert ran.code == 0, ran.err
        assert "as they were written" in ran.out
        assert json.loads(ran.out.splitlines()[-1])["runs/x"]["damage"] == {}

    def test_what_it_cannot_verify_among_others_is_listed(self, run, alphapo):
        """So that `runs/*` can be verified, where evaluations lie beside runs."""
        (run.parent / "eval-1").mkdir()
        ran = alphapo("verify", "runs/x", "runs/eval-1")
        assert ran.code == 0, ran.err
        assert "runs/eval-1: not verified: no run, sweep or generation" in ran.out
        assert alphapo("verify", "runs/eval-1").code == 2

    def test_a_folder_of_results_is_verified_one_by_one(self, run, alphapo):
        (run.parent / "notes").mkdir()
        ran = alphapo("verify", "runs")
        assert ran.code == 0, ran.err
        assert ran.out.startswith("runs/x: ")
        flip(run / "model" / "model.safetensors", random.Random(3))
        assert alphapo("verify", "runs").code == 1

    def test_one_bit_is_found_by_verify(self, run, alphapo):
        flip(run / "model" / "model.safetensors", random.Random(3))
        ran = alphapo("verify", "runs/x")
        assert ran.code == 1
        assert "  model/model.safetensors: its content has changed" in ran.out

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["gone", "shorter"])
    def test_what_is_missing_is_found_by_every_line(self, how, run, line, alphapo):
        model = run / "model"
        if how == "gone":
            shutil.rmtree(model)
        else:
            truncate(model / "model.safetensors", random.Random(4))
        ran = alphapo(*line)
        assert ran.code == 2
        assert "says that it is complete, but model/" in ran.fault
        assert "start over with --replace" in ran.fault
        assert alphapo(*line, "--replace").code == 0

    def test_a_number_that_changed_in_the_summary(self, run, line, alphapo):
        text = (run / "summary.json").read_text()
        changed = re.sub(r'(?<="rewards/accuracies": )[\d.]+', "0.123", text)
        assert changed != text
        (run / "summary.json").write_text(changed)
        ran = alphapo(*line)
        assert ran.code == 2
        assert "summary.json is damaged" in ran.fault

    def test_no_directory_of_ours(self, alphapo, tmp_path):
        (tmp_path / "d").mkdir()
        ran = alphapo("verify", "d")
        assert ran.code == 2
        assert "no summary.json here or in cells/" in ran.fault

    def test_one_of_an_older_version(self, run, line, alphapo):
        summary = json.loads((run / "summary.json").read_text())
        del summary["files"], summary["checksum"]
        (run / "summary.json").write_text(json.dumps(summary))
        assert alphapo(*line).code == 0
        assert "no checksums (written by an older alphapo)" in alphapo("verify", "runs/x").out


@pytest.mark.slow
def test_a_sweep_names_the_cell_whose_model_is_gone(alphapo, tiny):
    line = [
        "sweep",
        "alpha",
        "objective.shape.alpha=0,1",
        *tiny,
        "trainer.max_steps=1",
        "launcher.workers=0",
        "--out",
        "s",
    ]
    done = alphapo(*line)
    assert done.code == 0, done.err
    assert alphapo("verify", "s").code == 0
    summary = (done.path / "summary.json").read_bytes()
    (done.path / "summary.json").write_bytes(summary.replace(b'"complete"', b'"complexe"', 1))
    ran = alphapo("verify", "s")
    assert ran.code == 1
    assert "summary.json: cannot be read, or has changed" in ran.out
    (done.path / "summary.json").write_bytes(summary)
    cell = min(p for p in (done.path / "cells").iterdir())
    shutil.rmtree(cell / "model")
    again = alphapo(*line)
    assert again.code == 2
    assert f"{cell.name} says that it is over, but model/" in again.fault
    assert "remove the directory to train the cell anew" in again.fault
    ran = alphapo("verify", "s")
    assert ran.code == 1
    shutil.rmtree(cell)
    assert alphapo(*line).code == 0
    assert alphapo("verify", "s").code == 0

"""A disk that is full, or takes no writes: a clear line, nothing corrupt, and the same line completes when there is room.

On file systems of their own: permission bits and limits of a process mean nothing to root, who alone may mount them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest

ALPHA = "objective.shape.alpha"
SIZE = 16 << 20  # bytes
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a file system needs root"),
]


@pytest.fixture
def disk(tmp_path):
    """An empty file system of 16 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def leave(disk: Path, free: int) -> Path:
    """Fill the disk up to `free` bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(b"x" * (SIZE - free))
    return filler


def check_readable(folder: Path) -> None:
    """Every file in `folder` is whole; of a log that grows by lines the last one may be torn."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.jsonl"):
        for row in path.read_text().split("\n")[:-1]:
            json.loads(row)
    for path in folder.rglob("*.safetensors"):
        from safetensors.torch import load_file

        load_file(path)


@pytest.fixture
def line(tiny):
    return ("sweep", "alpha", f"{ALPHA}=0,1", *tiny, "trainer.max_steps=6", "trainer.save_steps=2", "probe.every=3")


def results(path: Path) -> dict[str, tuple]:
    cells = json.loads((path / "summary.json").read_text())["cells"]
    files = ("metrics.jsonl", "probe.jsonl", "model/model.safetensors")
    return {c["id"]: (c["state"], *((path / "cells" / c["id"] / f).read_bytes() for f in files)) for c in cells}


@pytest.fixture
def undisturbed(alphapo, line, tmp_path):
    ran = alphapo(*line, "launcher.workers=0", "--out", "elsewhere/s")
    assert ran.code == 0, ran.err
    return results(ran.path)


# From nothing at all to most of what two cells take: the disk is full at other files each time.
FREE = [0, 8 << 10, 64 << 10, 600 << 10, 1 << 20, 2 << 20, 3 << 20]
EVERY_DAY = [(8 << 10, 0), (1 << 20, 0), (2 << 20, 1)]


@pytest.mark.parametrize(
    ("free", "workers"),
    [
        pytest.param(*case, marks=[] if case in EVERY_DAY else [pytest.mark.nightly])
        for case in itertools.product(FREE, [0, 1])
    ],
)
def test_a_sweep_on_a_full_disk(free, workers, disk, alphapo, line, undisturbed):
    filler = leave(disk, free)
    line = (*line, f"launcher.workers={workers}", "--out", str(disk / "s"))
    ran = alphapo(*line)
    assert ran.code in (1, 2), (ran.code, ran.err)
    assert "No space left on device" in ran.err.splitlines()[-1], ran.err
    assert "Traceback" not in ran.err
    check_readable(disk)
    filler.unlink()
    again = alphapo(*line)
    assert again.code == 0, again.err
    assert results(again.path) == undisturbed
    assert not list(disk.rglob(".*.tmp*"))


@pytest.mark.parametrize("free", [8 << 10, 600 << 10])
def test_a_run_on_a_full_disk(free, disk, alphapo, tiny):
    filler = leave(disk, free)
    line = ("train", *tiny, f"run.dir={disk}", "run.name=x", "trainer.save_steps=1")
    ran = alphapo(*line)
    assert ran.code in (1, 2), (ran.code, ran.err)
    assert "No space left on device" in ran.err.splitlines()[-1], ran.err
    check_readable(disk)
    filler.unlink()
    assert alphapo(*line).code == 0
    other = alphapo("train", *tiny, "run.name=x", "trainer.save_steps=1")
    for file in ("metrics.jsonl", "probe.jsonl", "model/model.safetensors"):
        assert (disk / "x" / file).read_bytes() == (other.path / file).read_bytes()


def test_a_disk_that_fills_up_during_training_still_takes_the_model(disk, alphapo, tiny, monkeypatch):
    from alphapo_cli.stages.training.session import TrainingSession

    measure = TrainingSession.measure

    def fill(self, step):
        row = measure(self, step)
        if step == 3:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "filler").write_bytes(b"x" * (free - (256 << 10)))  # what the records of the last step take
        return row

    monkeypatch.setattr(TrainingSession, "measure", fill)
    ran = alphapo("train", *tiny, f"run.dir={disk}", "run.name=x", "tracking.pictures=false")
    assert ran.code == 0, ran.err
    assert not list((disk / "x").glob(".alphapo-*"))
    check_readable(disk)
    monkeypatch.undo()
    other = alphapo("train", *tiny, "run.name=x")
    assert (disk / "x" / "model/model.safetensors").read_bytes() == (
        other.path / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("step", [2, 4])
def test_a_disk_that_is_full_to_the_last_byte_costs_no_step(step, disk, alphapo, tiny, monkeypatch):
    from alphapo_cli.stages.training.session import TrainingSession
    from alphapo_cli.training.trainer import PreferenceTrainer

    measure, training_step, steps = TrainingSession.measure, PreferenceTrainer.training_step, []

    def fill(self, now):
        if now == step and "filler" not in os.listdir(disk):
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        return measure(self, now)

    def counted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(TrainingSession, "measure", fill)
    monkeypatch.setattr(PreferenceTrainer, "training_step", counted)
    # Without moments of an optimizer a checkpoint is about as large as the model, for which room is held.
    line = ("train", *tiny, f"run.dir={disk}", "run.name=x", "tracking.pictures=false", "trainer.optim=sgd")
    ran = alphapo(*line)
    if step == 2:  # of 4: it stops there and goes on
        assert ran.code == 1, ran.err
        assert "No space left on device at step 2: what was trained is kept in" in ran.err.splitlines()[-1]
        assert (disk / "x" / "checkpoints" / "step-2").is_dir()
        (disk / "filler").unlink()
        ran = alphapo(*line)
    assert ran.code == 0, ran.err
    assert steps == [0, 1, 2, 3]
    check_readable(disk)
    monkeypatch.undo()
    other = alphapo("train", *tiny, "run.name=x", "tracking.pictures=false", "trainer.optim=sgd")
    for file in ("metrics.jsonl", "probe.jsonl", "model/model.safetensors"):
        assert (disk / "x" / file).read_bytes() == (other.path / file).read_bytes()


@pytest.fixture
def read_only(disk):
    """Ends writing to `disk`."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    yield remount
    remount("rw")


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_place_that_takes_no_writes(command, disk, read_only, alphapo, tiny, line):
    lines = {
        "train": ("train", *tiny, f"run.dir={disk}", "run.name=x"),
        "sweep": (*line, "launcher.workers=0", "--out", str(disk / "s")),
    }
    read_only("ro")
    ran = alphapo(*lines[command])
    assert ran.code == 2, ran.err
    assert "Read-only file system" in ran.fault
    assert not list(disk.iterdir())
    read_only("rw")
    assert alphapo(*lines[command]).code == 0
    # What is complete can be looked at where nothing can be written.
    read_only("ro")
    if command == "sweep":
        ran = alphapo("sweep", "alpha", "--status", *line[2:], "--out", str(disk / "s"))
        assert (ran.code, ran.out.count("complete")) == (0, 2), ran.err


def test_a_disk_that_turns_read_only_under_a_sweep(disk, read_only, alphapo, line, undisturbed, monkeypatch):
    """As the kernel does after an error of the device, here between two cells."""
    from alphapo_cli.launch.cell import run_job
    from alphapo_cli.launch.launchers import inline

    def fails(job):
        ended = run_job(job)
        read_only("ro")
        return ended

    monkeypatch.setattr(inline, "run_job", fails)
    line = (*line, "launcher.workers=0", "--out", str(disk / "s"))
    ran = alphapo(*line)
    assert ran.code == 1, ran.err
    assert "Read-only file system" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    check_readable(disk)
    monkeypatch.undo()
    read_only("rw")
    again = alphapo(*line)
    assert again.code == 0, again.err
    assert results(again.path) == undisturbed

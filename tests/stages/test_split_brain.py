"""An owner that stood still and was replaced wakes up: its successor's work is what every command reads.

The owner stops inside a write, as a suspended machine would, its lock is taken from it, and another process trains the
run anew with another seed to its end. Then the first one goes on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.runs.checkpoints import Checkpoints
from alphapo_cli.stages.training.session import TrainingSession
from alphapo_cli.storage import atomic, owned_directory
from tests.stages.test_resume import record, weights


class Standstill:
    """Runs `meanwhile` once, where the owner stands still; the lock has been taken from it by then."""

    def __init__(self, meanwhile: Any) -> None:
        self.meanwhile, self.happened = meanwhile, False

    def __call__(self, lock: Any) -> None:
        if not self.happened:
            self.happened = True
            os.rename(lock.path, lock.path.with_suffix(".dead"))  # as a process on another host does
            self.meanwhile()


def at_rename(monkeypatch: pytest.MonkeyPatch, still: Standstill, name: str, when: str) -> None:
    """Stand still before or after the lock is asked for the last time ahead of a rename to `name`."""
    sync_tree = atomic.sync_tree

    def slow(folder: Path) -> None:
        sync_tree(folder)
        if folder.name.startswith(f".{name}.") and not still.happened:
            lock = folder.parent / (".claim" if name == "model" else "../.claim")
            (path,) = lock.glob("*.json")
            still(type("Lock", (), {"path": path}))

    rename = os.rename

    def late(source: Any, target: Any) -> None:
        if Path(target).name == name and Path(source).name.startswith(f".{name}.") and not still.happened:
            lock = Path(target).parent / (".claim" if name == "model" else "../.claim")
            (path,) = lock.glob("*.json")
            still(type("Lock", (), {"path": path}))
        rename(source, target)

    if when == "before":
        monkeypatch.setattr(owned_directory, "sync_tree", slow)
    else:
        monkeypatch.setattr(os, "rename", late)


def at_method(monkeypatch: pytest.MonkeyPatch, still: Standstill, kind: type, name: str) -> None:
    method = getattr(kind, name)

    def slow(self: Any, *arguments: Any, **named: Any) -> Any:
        found = method(self, *arguments, **named)
        lock = getattr(self, "lock", None) or next((a for a in arguments if hasattr(a, "generation")), None)
        if lock is not None and lock.path.suffix == ".json":
            still(lock)
        return found

    monkeypatch.setattr(kind, name, slow)


PLACES = {
    "the model is written": lambda p, s: at_rename(p, s, "model", "before"),
    "the model is about to be renamed": lambda p, s: at_rename(p, s, "model", "after"),
    "a checkpoint is written": lambda p, s: at_rename(p, s, "step-2", "before"),
    "a checkpoint is about to be renamed": lambda p, s: at_rename(p, s, "step-2", "after"),
    "a checkpoint was saved": lambda p, s: at_method(p, s, Checkpoints, "save"),
    "a row was written": lambda p, s: at_method(p, s, TrainingSession, "measure"),
    "a guard was asked": lambda p, s: at_method(p, s, TrainingSession, "guard"),
}
QUICK = ("the model is about to be renamed", "a checkpoint is written")


@pytest.mark.slow
@pytest.mark.parametrize("place", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PLACES])
def test_the_successors_run_is_what_stays(place, alphapo, tiny, monkeypatch):
    line = ["train", *tiny, "trainer.max_steps=3", "trainer.save_steps=1", "probe.every=1", "probe.samples=0"]
    other = [*line, "run.name=x", "seed=1", "--replace"]
    alone = alphapo(*line, "run.name=alone", "seed=1")
    assert alone.code == 0, alone.err
    ended = []
    still = Standstill(lambda: ended.append(alphapo(*other)))
    with monkeypatch.context() as patch:
        PLACES[place](patch, still)
        late = alphapo(*line, "run.name=x", "seed=0")
    assert still.happened
    assert ended[0].code == 0, ended[0].err
    assert late.code == 1
    assert "another process has taken over" in late.err
    path = ended[0].path
    assert record(path) == record(alone.path)
    left, right = weights(path), weights(alone.path)
    assert all((left[name] == right[name]).all() for name in right)
    assert json.loads((path / "summary.json").read_text())["state"] == "complete"
    assert not list(path.glob(".model*"))
    assert not (path / "checkpoints").exists()
    assert alphapo("verify", "runs/x").code == 0
    assert alphapo(*line, "run.name=x", "seed=1").code == 0


@pytest.mark.slow
def test_a_late_owners_checkpoint_is_not_gone_on_from(alphapo, tiny, monkeypatch):
    """Its successor began the run anew: under the same name, with another seed."""
    line = ["train", *tiny, "trainer.max_steps=3", "trainer.save_steps=1", "probe.samples=0", "run.name=x"]
    save = Checkpoints.save

    def stop(self, checkpoint, lock):
        save(self, checkpoint, lock)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        first = alphapo(*line, "seed=0")
    assert first.code == 130
    kept = {p.name: p.read_bytes() for p in (first.path / "checkpoints" / "step-1").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSession, "measure", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt))
        assert alphapo(*line, "seed=1", "--replace").code == 130
    late = first.path / "checkpoints" / "step-1"
    late.mkdir(parents=True)
    for name, content in kept.items():
        (late / name).write_bytes(content)
    last = alphapo(*line, "seed=1")
    assert last.code == 0, last.err
    assert "continues at step" not in last.err
    assert "step-1 is of a process that was replaced before the run began anew; removed" in last.err
    assert weights(last.path).keys()

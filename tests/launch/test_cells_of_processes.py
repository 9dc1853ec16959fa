"""Cells of several processes: the same results as in one, and what a killed process leaves is finished by the same line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from alphapo_cli.config.schema import TrainConfig, TrainerConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.launch.launchers import local, registry
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.storage.run_lock import lock_status
from alphapo_cli.training.data_order import DataOrder
from tests import tiny
from tests.conftest import Ran, entry_point, environment, strict_rows
from tests.launch.test_engine import ALPHA, cells_of, commits

# float32 rounds to 6e-8; sums over tokens and layers multiply that by some tens, and a step goes on from the one before.
TOLERANCE = 1e-5
# Adam divides a gradient by its own size: without the epsilon one that is round-off becomes a whole step.
CELL = ("trainer.adam_epsilon=1e-5", "trainer.save_steps=1")


def assert_same_cells(ours: Path, theirs: Path, cells: int) -> None:
    """Complete, committed once, and with the metrics, readings and weights of `theirs`."""
    mine, others = cells_of(ours), cells_of(theirs)
    assert mine.keys() == others.keys()
    assert {cell["state"] for cell in mine.values()} == {"complete"}
    assert commits(ours) == [1] * cells
    for name, cell in mine.items():
        one, two = ours / "cells" / cell["id"], theirs / "cells" / others[name]["id"]
        for file in ("metrics.jsonl", "probe.jsonl"):
            for a, b in zip(strict_rows(one / file), strict_rows(two / file), strict=True):
                tiny.assert_same_row(a, b, TOLERANCE)
        saved, expected = (load_file(path / "model" / "model.safetensors") for path in (one, two))
        assert all(tiny.relative_error(saved[key], p) <= TOLERANCE for key, p in expected.items())


def start(arguments: list[str], folder: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*entry_point(), *arguments], cwd=folder, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def ranks(process: psutil.Process | subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The ranks below a process, by their numbers."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "alphapo_cli.launch.rank" in child.cmdline():
                found[int(child.environ()["RANK"])] = child
        except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):  # it has just begun, or ended
            continue
    return found


def training(folder: Path, process: subprocess.Popen[str], rows: int) -> Path:
    """A cell that a living process trains and that has recorded so many rows."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for metrics in folder.glob("two/cells/*/metrics.jsonl"):
            held = lock_status(metrics.parent / ".claim")
            if held is not None and held.held and metrics.read_text().count("\n") >= rows:
                return metrics.parent
        time.sleep(0.02)
    raise AssertionError("no cell got under way")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cell_of_two_processes_and_two_kills_are_one_process(
    alphapo: Callable[..., Ran], tiny: tuple[str, ...], tmp_path: Path, shared_cache: Path
) -> None:
    """SIGKILL of a rank, which ends the other one, then of the worker that started the ranks; the same cell goes on."""
    words = ["sweep", "alpha", f"{ALPHA}=0.5", *tiny, *CELL, "trainer.max_steps=12", "probe.every=6"]
    alone = alphapo(*words, "launcher.workers=0", "--out", "alone")
    assert alone.code == 0, alone.err
    more = ("launcher.nproc_per_node=2", "launcher.crashes=3", "--out", "two")
    with start([*words, *more], tmp_path, shared_cache) as process:
        cell = training(tmp_path, process, 2)
        before = ranks(process)
        assert before.keys() == {0, 1}
        before[1].kill()
        before[0].wait(60)
        training(tmp_path, process, 6)
        (worker,) = psutil.Process(process.pid).children()
        orphans = list(ranks(process).values())
        worker.kill()
        psutil.wait_procs(orphans, timeout=20)
        assert not any(rank.is_running() for rank in orphans)
        out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert "each in 2 processes, which divide its steps among them" in err
    assert_same_cells(Path(out.splitlines()[0]), alone.path, 1)
    manifest = json.loads((cell / "manifest.json").read_text())
    assert (manifest["processes"], manifest["divided_among"]) == (1, 2)

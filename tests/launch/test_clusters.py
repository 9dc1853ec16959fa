"""`launcher=slurm` and `launcher=ray` on the engines themselves: the same numbers as here, and what is lost is found."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import slurm_cluster
from tests.launch.test_cells_of_processes import assert_same_cells
from tests.launch.test_engine import ALPHA, cells_of, commits, results

CELL = ("trainer.max_steps=8", "probe.every=4", "trainer.save_steps=1", "trainer.threads=1")


@pytest.fixture
def small(tiny):
    return (*tiny, *CELL)


@pytest.fixture
def inline(alphapo, small):
    """What this process alone makes of a grid."""

    def run(*grid):
        ran = alphapo("sweep", "alpha", *grid, *small, "launcher.workers=0", "--out", "inline")
        assert ran.code == 0, ran.err
        return results(ran.path)

    return run


def start(line, folder, cache, extra=None) -> subprocess.Popen:
    from tests.conftest import entry_point, environment

    return subprocess.Popen(
        [*entry_point(), *line], cwd=folder, env=environment(cache, extra), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def under_way(folder: Path, known: set[Path], process, seconds: float = 300) -> tuple[Path, int]:
    """(cell, process id of its owner) of a cell that has recorded a step and is not in `known`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for claim in folder.rglob("cells/*/.claim/*.json"):
            cell = claim.parent.parent
            with contextlib.suppress(OSError, ValueError):
                if cell not in known and (cell / "metrics.jsonl").read_text().count("\n") >= 1:
                    return cell, json.loads(claim.read_text())["pid"]
        time.sleep(0.02)
    raise AssertionError("no cell got under way")


@pytest.mark.slurm
class TestSlurm:
    @pytest.fixture
    def slurm(self, tmp_path_factory):
        reason = slurm_cluster.missing()
        if reason:
            pytest.skip(reason)
        with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
            yield environment

    @pytest.mark.timeout(1500)
    @pytest.mark.parametrize(
        ("grid", "cells"),
        [((f"{ALPHA}=-1,-0.5,0,0.5,1,2",), 6), pytest.param((), 13, marks=pytest.mark.nightly)],
        ids=["6", "13"],
    )
    def test_one_task_is_cancelled_and_one_killed(self, grid, cells, slurm, inline, small, tmp_path, shared_cache):
        line = ["sweep", "alpha", *grid, *small, "launcher=slurm"]
        with start(line, tmp_path, shared_cache, slurm) as process:
            killed, owner = under_way(tmp_path, set(), process)
            os.kill(owner, signal.SIGKILL)
            cancelled, _ = under_way(tmp_path, {killed}, process)
            _scancel(cancelled, slurm)
            out, err = process.communicate(timeout=1200)
        path = Path(out.splitlines()[0])
        if process.returncode != 0:  # the cancelled one waits for the line to be typed again
            assert process.returncode == 1, err
            with start(line, tmp_path, shared_cache, slurm) as process:
                out, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
        assert len(cells_of(path)) == cells
        assert commits(path) == [1] * cells
        assert list((killed / ".claim").glob("*.dead"))
        assert results(path) == inline(*grid)

    @pytest.mark.timeout(900)
    def test_the_task_of_a_cell_of_two_processes_is_killed(self, slurm, alphapo, small, tmp_path, shared_cache):
        """SIGKILL of the task, and of its ranks by that: the engine submits the cell again, which goes on."""
        words = ["sweep", "alpha", f"{ALPHA}=0.5", *small, "trainer.adam_epsilon=1e-5"]
        line = [*words, "launcher=slurm", "launcher.nproc_per_node=2", "--out", "two"]
        with start(line, tmp_path, shared_cache, slurm) as process:
            cell, owner = under_way(tmp_path, set(), process)
            task = psutil.Process(owner).parent()
            assert "submitit" in " ".join(task.cmdline())
            ranks = task.children()
            assert len(ranks) == 2
            task.kill()
            psutil.wait_procs(ranks, timeout=30)
            assert not any(rank.is_running() for rank in ranks)
            out, err = process.communicate(timeout=800)
        assert process.returncode == 0, err
        assert list((cell / ".claim").glob("*.dead"))
        alone = alphapo(*words, "launcher.workers=0", "--out", "alone")
        assert_same_cells(Path(out.splitlines()[0]), alone.path, 1)

    @pytest.mark.nightly
    @pytest.mark.timeout(900)
    def test_a_cell_on_two_nodes(self, alphapo, small, tmp_path, tmp_path_factory, shared_cache):
        if reason := slurm_cluster.missing():
            pytest.skip(reason)
        words = ["sweep", "alpha", f"{ALPHA}=0.5", *small, "trainer.adam_epsilon=1e-5"]
        line = [*words, "launcher=slurm", "launcher.nodes=2", "--out", "two"]
        with (
            slurm_cluster.cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as slurm,
            start(line, tmp_path, shared_cache, slurm) as process,
        ):
            out, err = process.communicate(timeout=800)
        assert process.returncode == 0, err
        assert "each in 2 processes on 2 nodes" in err
        alone = alphapo(*words, "launcher.workers=0", "--out", "alone")
        assert_same_cells(Path(out.splitlines()[0]), alone.path, 1)

    @pytest.mark.timeout(600)
    def test_one_cell_alone_is_there_while_squeue_knows_it(self, slurm, alphapo, small, monkeypatch):
        """One cell is no array to Slurm: with no grace at all, it counts as gone unless squeue's name of it is read."""
        monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        monkeypatch.setattr("alphapo_cli.launch.launchers.slurm.GRACE", 1e-9)
        ran = alphapo("sweep", "alpha", f"{ALPHA}=0.5", *small, "launcher=slurm", "launcher.crashes=1")
        assert ran.code == 0, ran.err

    def test_dry_run_prints_the_script(self, slurm, alphapo, small, monkeypatch):
        monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        ran = alphapo(
            "sweep", "alpha", *small, "launcher=slurm", "launcher.time=7", "launcher.partition=main", "--dry-run"
        )
        assert ran.code == 0, ran.err
        assert "#SBATCH --array=0-12" in ran.out
        assert "#SBATCH --partition=main" in ran.out
        assert "#SBATCH --time=7" in ran.out

    def test_a_cell_of_several_nodes_asks_for_them(self, slurm, alphapo, small, monkeypatch):
        monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        more = ("launcher.nodes=2", "launcher.nproc_per_node=4", "launcher.gpus=4", "launcher.cpus=2")
        ran = alphapo("sweep", "alpha", *small, "launcher=slurm", *more, "--dry-run")
        assert ran.code == 0, ran.err
        asked = {line.removeprefix("#SBATCH --") for line in ran.out.splitlines() if line.startswith("#SBATCH")}
        # A core for each process, though fewer were asked for; one task on each node, which starts the others.
        assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "cpus-per-task=4"} <= asked


def _scancel(cell: Path, environment) -> None:
    """Cancel the array task that runs a cell."""
    claim = next((cell / ".claim").glob("*.json"))
    pid = json.loads(claim.read_text())["pid"]
    text = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(item.split(b"=", 1) for item in text if b"=" in item)
    task = f"{found[b'SLURM_ARRAY_JOB_ID'].decode()}_{found[b'SLURM_ARRAY_TASK_ID'].decode()}"
    subprocess.run(["scancel", task], env={**os.environ, **environment}, check=True)


@pytest.mark.slurm  # test-all installs submitit
def test_without_slurm_the_launcher_says_so(alphapo, small, monkeypatch):
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    monkeypatch.setenv("PATH", "/nowhere")
    ran = alphapo("sweep", "alpha", *small, "launcher=slurm")
    assert ran.code == 2
    assert "there is no sbatch on this machine" in ran.fault


# A cluster of two nodes until its stdin is closed.
RAY = """
import sys
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
class TestRay:
    @pytest.mark.timeout(900)
    def test_a_killed_worker_is_retried(self, inline, small, tmp_path, shared_cache):
        grid = f"{ALPHA}=-1,0,1"
        with start(["sweep", "alpha", grid, *small, "launcher=ray"], tmp_path, shared_cache) as process:
            cell, owner = under_way(tmp_path, set(), process)
            os.kill(owner, signal.SIGKILL)
            out, err = process.communicate(timeout=800)
        assert process.returncode == 0, err
        path = Path(out.splitlines()[0])
        assert commits(path) == [1, 1, 1]
        assert list((cell / ".claim").glob("*.dead"))
        assert results(path) == inline(grid)

    @pytest.mark.timeout(900)
    def test_a_process_of_a_cell_of_two_is_killed(self, alphapo, small, tmp_path, shared_cache):
        words = ["sweep", "alpha", f"{ALPHA}=0.5", *small, "trainer.adam_epsilon=1e-5"]
        line = [*words, "launcher=ray", "launcher.nproc_per_node=2", "--out", "two"]
        with start(line, tmp_path, shared_cache) as process:
            _, owner = under_way(tmp_path, set(), process)
            ranks = psutil.Process(owner).parent().children()
            assert len(ranks) == 2
            next(rank for rank in ranks if rank.pid != owner).kill()
            out, err = process.communicate(timeout=800)
        assert process.returncode == 0, err
        alone = alphapo(*words, "launcher.workers=0", "--out", "alone")
        assert_same_cells(Path(out.splitlines()[0]), alone.path, 1)

    @pytest.mark.nightly
    @pytest.mark.timeout(900)
    def test_a_cell_on_two_nodes(self, alphapo, small, tmp_path, shared_cache):
        """Two nodes of Ray on this machine, with a core each: a bundle of the cell on each of them."""
        words = ["sweep", "alpha", f"{ALPHA}=0.5", *small, "trainer.adam_epsilon=1e-5"]
        with subprocess.Popen(
            [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as ray:
            address = ray.stdout.readline().strip()
            line = [*words, "launcher=ray", "launcher.nodes=2", f"launcher.address={address}", "--out", "two"]
            with start(line, tmp_path, shared_cache) as process:
                out, err = process.communicate(timeout=600)
            ray.communicate()
        assert process.returncode == 0, err
        alone = alphapo(*words, "launcher.workers=0", "--out", "alone")
        assert_same_cells(Path(out.splitlines()[0]), alone.path, 1)

    @pytest.mark.timeout(120)
    def test_a_cell_that_this_machine_has_no_room_for_is_refused(self, alphapo, small):
        """Ray would wait for ever."""
        ran = alphapo(
            "sweep", "alpha", f"{ALPHA}=0.5", *small, "launcher=ray", "launcher.nproc_per_node=8", "launcher.cpus=4096"
        )
        assert ran.code == 2
        assert "a task needs 4096 CPUs, and this machine has" in ran.err

"""The engine with real worker processes: kills, crashes, several sweeps at once, retries, and what can be looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ALPHA = "objective.shape.alpha"
HERE = "launcher.workers=0"


@pytest.fixture
def small(tiny):
    """Overrides of a cell of a few seconds with a checkpoint after every step."""
    return (*tiny, "trainer.max_steps=8", "probe.every=4", "trainer.save_steps=1")


def cells_of(path: Path) -> dict[str, dict]:
    return {" ".join(c["overrides"]): c for c in json.loads((path / "summary.json").read_text())["cells"]}


def results(path: Path) -> dict[str, tuple]:
    """All that configuration and seed decide, by cell: metrics of the summary, of every step, and of every pair."""
    found = {}
    for name, cell in cells_of(path).items():
        folder = path / "cells" / cell["id"]
        files = tuple((folder / file).read_bytes() for file in ("metrics.jsonl", "probe.jsonl"))
        found[name] = (cell["state"], cell["metrics"], *files, (folder / "model" / "model.safetensors").read_bytes())
    return found


def commits(path: Path) -> list[int]:
    """How often each cell was committed."""
    return [len(list((cell / ".claim").glob("*.done"))) for cell in (path / "cells").iterdir()]


@pytest.mark.slow
class TestWorkers:
    def test_several_workers_give_what_one_process_gives(self, alphapo, small, tmp_path):
        line = ["sweep", "alpha", f"{ALPHA}=-1,0,1", *small]
        inline = alphapo(*line, HERE, "--out", "inline")
        spread = alphapo(*line, "launcher.workers=2", "--out", "spread")
        assert (inline.code, spread.code) == (0, 0), spread.err
        assert results(inline.path) == results(spread.path)
        assert commits(spread.path) == [1, 1, 1]
        assert {p.name for p in (spread.path / "logs").iterdir()} == {"worker-0.log", "worker-1.log"}

    def test_a_crashed_worker_is_replaced_and_its_cell_goes_on(self, small, tmp_path, shared_cache):
        """SIGKILL of the worker in the middle of a cell."""
        with started(small, tmp_path, shared_cache) as process:
            worker, cell = working(process, tmp_path)
            os.kill(worker, signal.SIGKILL)
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        path = Path(out.splitlines()[0])
        assert {c["state"] for c in cells_of(path).values()} == {"complete"}
        assert commits(path) == [1, 1]
        (dead,) = (path / "cells").glob("*/.claim/*.dead")
        assert dead.parent.parent.name == cell.name

    def test_a_cell_that_kills_its_workers_has_failed_and_the_others_have_not(self, small, tmp_path, shared_cache):
        """As the kernel does when memory is out, whenever this cell runs."""
        with started((*small, "trainer.max_steps=60"), tmp_path, shared_cache) as process:
            first: Path | None = None
            killed: set[int] = set()
            for _ in range(2):
                worker, cell = working(process, tmp_path, only=first, dead=killed)
                first = first or cell
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        states = {Path(c["id"]).name: (c["state"], c["reason"]) for c in cells_of(first.parent.parent).values()}
        assert states.pop(first.name) == (
            "failed", "the worker died (killed by SIGKILL), 2 times; a smaller batch needs less memory",
        )  # fmt: skip
        assert set(states.values()) == {("complete", None)}
        assert "1 of 2 cells failed" in err.splitlines()[-1]

    def test_workers_end_when_their_parent_is_killed(self, small, tmp_path, shared_cache):
        with started(small, tmp_path, shared_cache) as process:
            worker, _ = working(process, tmp_path)
            process.kill()
            gone(worker)

    def test_ctrl_c_leaves_checkpoints_and_the_same_line_goes_on(self, small, alphapo, tmp_path, shared_cache):
        """As a terminal does it: the signal goes to the worker, too."""
        long = (*small, "trainer.max_steps=400", "trainer.save_steps=1000")
        with started(long, tmp_path, shared_cache) as process:
            working(process, tmp_path)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("alphapo: interrupted; 0 of 2 cells of this line done")
        path = Path(out.splitlines()[0])
        states = sorted(c["state"] for c in cells_of(path).values())
        assert states == ["interrupted", "pending"]
        (stopped,) = [c for c in cells_of(path).values() if c["state"] == "interrupted"]
        step = json.loads((path / "cells" / stopped["id"] / "summary.json").read_text())["step"]
        assert (path / "cells" / stopped["id"] / "checkpoints" / f"step-{step}" / "complete").is_file()


def started(overrides, folder, cache) -> subprocess.Popen:
    """A sweep of two cells on one worker, as a user would start it."""
    from tests.conftest import entry_point, environment

    line = [*entry_point(), "sweep", "alpha", f"{ALPHA}=0,1", *overrides, "launcher.workers=1"]
    return subprocess.Popen(
        line, cwd=folder, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def working(process, folder, only=None, dead=(), steps=2) -> tuple[int, Path]:
    """(process id of the worker, cell) as soon as a cell has recorded `steps` steps since its claim.

    The claim of a `dead` worker lies there until another one takes the cell.
    """
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        for claim in folder.glob("runs/*/cells/*/.claim/*.json"):
            cell = claim.parent.parent
            try:
                owner, since = json.loads(claim.read_text())["pid"], claim.stat().st_ctime
                metrics = cell / "metrics.jsonl"
                written = metrics.read_text().count("\n") if metrics.is_file() else 0
            except (OSError, ValueError):
                continue
            fresh = written and metrics.stat().st_mtime >= since - 5
            if owner not in dead and (only is None or cell == only) and written >= steps and fresh:
                return owner, cell
        time.sleep(0.01)
    raise AssertionError("no cell got under way")


def gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


class TestRetries:
    @pytest.fixture
    def failed(self, alphapo, small, monkeypatch):
        """A sweep whose second cell failed for a reason that has gone since."""
        from alphapo_cli.stages.training.session import TrainingSession

        measure = TrainingSession.measure

        def full(self, step):
            if self.cfg.objective.shape["alpha"] == 1 and step == 5:
                raise OSError(28, "No space left on device")
            return measure(self, step)

        line = ("sweep", "alpha", f"{ALPHA}=0,1,2", *small, HERE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingSession, "measure", full)
            ran = alphapo(*line)
        assert ran.code == 1
        return line, ran

    @pytest.mark.slow
    def test_a_failed_cell_is_tried_again_from_its_checkpoint(self, failed, alphapo):
        line, ran = failed
        assert cells_of(ran.path)[f"{ALPHA}=1"]["reason"].startswith("No space left on device: make room")
        again = alphapo(*line)
        assert again.code == 0
        assert "continues at step 4 of 8" in again.err
        whole = alphapo(*line, "--out", "whole")
        assert results(again.path) == results(whole.path)

    @pytest.mark.slow
    def test_no_retry_leaves_it(self, failed, alphapo, snapshot):
        line, ran = failed
        before = snapshot(ran.path / "cells")
        again = alphapo(*line, "--no-retry")
        assert again.code == 0  # nothing of this line failed
        assert snapshot(ran.path / "cells") == before

    @pytest.mark.slow
    def test_fail_fast_starts_nothing_more(self, failed, alphapo, small):
        line, _ = failed
        from alphapo_cli.stages.training.session import TrainingSession

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingSession, "_prepare", lambda *_: 1 / 0)
            ran = alphapo(*line, "--fail-fast", "--out", "other")
        assert ran.code == 1
        assert [c["state"] for c in cells_of(ran.path).values()] == ["failed", "pending", "pending"]

    @pytest.mark.slow
    def test_stopped_cells_are_neither_repeated_nor_a_failure(self, alphapo, small, snapshot):
        line = (
            "sweep",
            "alpha",
            f"{ALPHA}=0,1",
            *small,
            HERE,
            "guard.max_chosen_drop=1e-6",
            "trainer.learning_rate=1e-3",
        )
        ran = alphapo(*line)
        assert ran.code == 0, ran.err
        assert {c["state"] for c in cells_of(ran.path).values()} == {"stopped"}
        before = snapshot(ran.path / "cells")
        again = alphapo(*line)
        assert (again.code, snapshot(ran.path / "cells")) == (0, before)


class TestLooking:
    @pytest.mark.slow
    def test_status_reads_and_writes_nothing(self, alphapo, small, tmp_path, snapshot):
        line = ("sweep", "alpha", f"{ALPHA}=0,1", *small, HERE)
        before = alphapo(*line, "--status")
        assert (before.code, list(tmp_path.iterdir())) == (0, [])
        assert before.out.count("pending") == 2
        ran = alphapo(*line)
        there = snapshot(ran.path)
        after = alphapo(*line, "--status")
        assert after.out.count("complete") == 2
        assert snapshot(ran.path) == there
        rate = cells_of(ran.path)[f"{ALPHA}=1"]["metrics"]["glassbox/true_win_rate"]
        assert f"{100 * rate:.0f} %" in after.out

    @pytest.mark.slow
    def test_a_killed_cell_is_interrupted_not_running(self, alphapo, small, tmp_path):
        from alphapo_cli.storage.run_lock import acquire

        line = ("sweep", "alpha", f"{ALPHA}=0", *small, HERE)
        ran = alphapo(*line)
        (cell,) = (ran.path / "cells").iterdir()
        summary = json.loads((cell / "summary.json").read_text())
        (cell / "summary.json").write_text(json.dumps(summary | {"state": "running"}))
        claim = acquire(cell / ".claim")
        assert "running" in alphapo(*line, "--status").out
        claim.release()
        assert "interrupted" in alphapo(*line, "--status").out

    @pytest.mark.slow
    def test_dry_run_says_what_would_run(self, alphapo, small, tmp_path):
        line = ("sweep", "alpha", *small, HERE)
        alphapo(*line, f"{ALPHA}=0")
        planned = alphapo(*line, f"{ALPHA}=0,1", "--dry-run")
        assert planned.code == 0
        rows = [row for row in planned.out.splitlines() if f"{ALPHA}=" in row]
        assert ["yes" in row for row in rows] == [False, True]


class TestLauncherKeys:
    @pytest.mark.parametrize(("text", "says"), [
        ("launcher=slurmm", "did you mean 'slurm'"),
        ("launcher.partition=gpu", "belongs to slurm"),
        ("launcher.worker=2", "did you mean 'launcher.workers'"),
        ("launcher.workers=-1", "launcher.workers"),
    ])  # fmt: skip
    def test_bad_ones(self, text, says, alphapo):
        ran = alphapo("sweep", "alpha", text)
        assert ran.code == 2
        assert says in ran.fault

    @pytest.mark.slow
    def test_they_are_no_part_of_the_sweeps_identity(self, alphapo, small):
        one = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, HERE)
        two = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, "launcher.workers=3", "--max-parallel", "1")
        assert one.path == two.path


@pytest.mark.slow
def test_two_processes_on_one_sweep_share_the_cells(small, tmp_path, shared_cache):
    """Both end well, every cell was run once, and both print the whole table."""
    with started(small, tmp_path, shared_cache) as one, started(small, tmp_path, shared_cache) as two:
        outs = [process.communicate(timeout=300) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), outs
    paths = {Path(out.splitlines()[0]) for out, _ in outs}
    (path,) = paths
    assert commits(path) == [1, 1]
    assert {c["state"] for c in cells_of(path).values()} == {"complete"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kills", "nproc"),
    [(1, 1), pytest.param(12, 1, marks=pytest.mark.nightly), pytest.param(10, 2, marks=pytest.mark.nightly)],
)
def test_killed_at_random_moments_it_ends_as_undisturbed(kills, nproc, shared_cache, tmp_path, monkeypatch):
    """A few of what `python tests/launch/kill_at_random.py` does."""
    from tests.conftest import environment
    from tests.launch import kill_at_random

    for name, value in environment(shared_cache).items():
        monkeypatch.setenv(name, value)
    tally = kill_at_random.run(tmp_path, kills=kills, seed=1, nproc=nproc)
    assert tally.faults == []
    assert tally.kills.total() >= kills


def test_a_dry_run_on_slurm_with_nothing_to_run_prints_no_script(tmp_path):
    from alphapo_cli.launch.launchers.registry import script
    from alphapo_cli.launch.schema import LauncherConfig
    from alphapo_cli.sweep.directory import SweepDirectory

    assert script(LauncherConfig(name="slurm"), SweepDirectory(tmp_path), 0) == ""

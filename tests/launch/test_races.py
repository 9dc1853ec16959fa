"""What the engine makes of workers, other processes and kills that come at a bad moment; nothing is trained here."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alphapo_cli.errors import Interrupted, UsageError
from alphapo_cli.launch.engine import Policy, SweepEngine
from alphapo_cli.launch.launchers.launcher import CellJob, Ended
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.signals import stop_requests
from alphapo_cli.storage.run_lock import LockLost, acquire
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell


@dataclass
class Scripted:
    """A launcher whose jobs end as `ends` says, one after another."""

    ends: list[str]
    queue: list[CellJob] = field(default_factory=list)
    starts: int = 0
    stopped: bool = False

    def start(self, jobs):
        self.starts += len(jobs)
        self.queue += jobs

    def wait(self, seconds):
        return [Ended(self.queue.pop(0), self.ends.pop(0), "the worker died")] if self.queue else []

    def stop(self):
        self.stopped = True
        self.queue.clear()

    def under_way(self):
        return []


@pytest.fixture
def directory(tmp_path) -> SweepDirectory:
    return SweepDirectory(tmp_path / "s")


def written(directory: SweepDirectory, state: str) -> RunDirectory:
    run = directory.cell("c")
    run.path.mkdir(parents=True)
    run.config.write_text("seed: 0\n")
    run.finish(state, "as before" if state == "failed" else None, 4, {"rewards/accuracies": 0.75}, {})
    return run


def engine(directory, launcher, told=None) -> SweepEngine:
    return SweepEngine(directory, launcher, Policy(), told.append if told is not None else lambda e: None, lambda: None)


CELL = Cell("c", {"seed": 0}, ("seed=0",), None)
PLAN = SimpleNamespace(key="asked")


def test_a_cell_whose_worker_dies_while_it_is_evaluated_is_not_taken_for_done(directory):
    run = written(directory, "complete")
    before = run.summary()
    launcher = Scripted(["lost", "lost"])
    (ended,) = engine(directory, launcher).run([CELL], PLAN)
    assert (ended.state, launcher.starts) == ("failed", 2)
    assert run.summary() == before  # the training is not lost over it
    assert run.outcome()["reason"].startswith("trained, but not evaluated: the worker died, 2 times")


def test_a_cell_that_was_evaluated_before_its_worker_died_is_done(directory):
    run = written(directory, "complete")
    (run.path / "outcome.json").write_text(json.dumps({"key": "asked", "metrics": {}}))
    (ended,) = engine(directory, Scripted(["lost"])).run([CELL], PLAN)
    assert ended.state == "complete"


def test_a_failed_cell_that_another_process_tries_again_is_waited_for(directory):
    """Until that one goes on, summary.json has the failure of the attempt before."""
    run = written(directory, "failed")
    claim = acquire(run.lock)
    told: list[Ended] = []
    work = engine(directory, Scripted([]), told)
    work.busy["c"] = CellJob(str(directory.path), ".", "c", (), None)
    work._look_again()
    assert (told, list(work.busy)) == ([], ["c"])
    run.finish("complete", None, 4, {}, {})
    claim.release()
    work._look_again()
    assert [e.state for e in told] == ["complete"]


def test_status_does_not_show_what_other_settings_found(directory):
    from rich.console import Console

    from alphapo_cli.sweep.status import status_table

    run = written(directory, "complete")
    (run.path / "outcome.json").write_text(json.dumps({"key": "other", "metrics": {"eval/win_rate": 0.987}}))
    console = Console(width=160)

    def shown(key: str) -> str:
        with console.capture() as capture:
            console.print(status_table(directory.path, {"c": ["seed=0"]}, key))
        return capture.get()

    assert ("win rate 99 %" in shown("other"), "win rate 99 %" in shown("asked")) == (True, False)


def test_ctrl_c_while_the_first_jobs_are_handed_out(directory):
    directory.path.mkdir()

    class Signalled(Scripted):
        def start(self, jobs):
            raise KeyboardInterrupt

    launcher = Signalled([])
    with pytest.raises(Interrupted, match="0 of 1 cells"):
        engine(directory, launcher).run([CELL])
    assert launcher.stopped


def test_an_idle_worker_that_dies_is_replaced(monkeypatch, tmp_path):
    """A cell that another process held may come back when no job is left in the queue."""
    from alphapo_cli.launch.launchers import local

    class Stub:
        def __init__(self, number, log, gpu):
            self.number, self.job, self.ready = number, None, True
            self.connection, self.theirs = Pipe()

        def receive(self):
            raise EOFError

        how_it_died = end = lambda self: "killed by SIGKILL"

    monkeypatch.setattr(local, "Worker", Stub)
    monkeypatch.setattr(local, "gpus", list)
    launcher = local.LocalLauncher(1, tmp_path)
    worker: Any
    (worker,) = launcher.workers.values()
    worker.theirs.close()
    assert launcher.wait(0.1) == []
    assert len(launcher.workers) == 1
    assert worker not in launcher.workers.values()


class TestJobs:
    @pytest.fixture
    def job(self, directory, monkeypatch) -> CellJob:
        monkeypatch.chdir(directory.path.parent)
        return CellJob(str(directory.path), str(directory.path.parent), "c", (), None)

    def end(self, job, monkeypatch, error) -> Ended:
        from alphapo_cli.launch import cell
        from alphapo_cli.stages import train

        def run(*args, **kwargs):
            raise error

        monkeypatch.setattr(train, "run", run)
        return cell.run_job(job)

    def test_a_cell_that_another_process_took_over_is_that_ones(self, job, monkeypatch):
        assert self.end(job, monkeypatch, LockLost("taken")).state == "busy"

    def test_a_refusal_does_not_touch_what_another_process_begins(self, job, directory, monkeypatch):
        run = directory.cell("c")
        claim = acquire(run.lock)
        assert self.end(job, monkeypatch, MemoryError()).state == "failed"
        assert [p.name for p in run.path.iterdir()] == [".claim"]
        claim.release()


class TestSignals:
    @pytest.fixture(autouse=True)
    def _ignored(self):
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
        terminate = signal.getsignal(signal.SIGTERM)
        yield
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGTERM, terminate)

    def test_a_run_leaves_ignored_signals_ignored(self):
        """Ctrl-C in a terminal reaches a worker together with its parent's SIGTERM; nohup keeps SIGHUP away."""
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked

    def test_the_command_line_too(self, alphapo):
        alphapo("--version")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class TestKilledRuns:
    """What a kill leaves of a run directory."""

    CFG = SimpleNamespace(run=SimpleNamespace(name="x"))

    def test_while_the_manifest_was_written(self, tmp_path):
        run = RunDirectory(tmp_path / "x")
        acquire(run.lock).release()
        (run.path / ".manifest.json.1.ab.tmp").write_text("{")
        assert run.check(self.CFG, replace=False) == "pending"

    def test_while_the_manifest_of_its_answers_was_written(self, tmp_path):
        from alphapo_cli.stages.directories.generation import GenerateDirectory

        (tmp_path / "generate").mkdir()
        (tmp_path / "generate" / ".manifest.json.1.ab.tmp").write_text("{")
        assert GenerateDirectory(tmp_path / "generate").open({"model": "m"}, replace=False) == "pending"

    @pytest.mark.parametrize("removed", range(1, 5))
    def test_while_it_was_started_over(self, removed, tmp_path, monkeypatch):
        """Nothing may go on from a checkpoint whose rows are gone."""
        run = RunDirectory(tmp_path / "x")
        (run.checkpoints / "step-1").mkdir(parents=True)
        for name in ("summary.json", "metrics.jsonl", "probe.jsonl", "config.yaml"):
            (run.path / name).write_text("{}")
        run.manifest.write_text(json.dumps({"made_by": "alphapo"}))
        unlink, count = Path.unlink, iter(range(100))

        def dies(path, missing_ok=False):
            unlink(path, missing_ok=missing_ok)
            if next(count) + 1 == removed:
                raise SystemExit

        monkeypatch.setattr(Path, "unlink", dies)
        with pytest.raises(SystemExit):
            run.begin(self.CFG, {}, {})
        assert run.state == "pending"

    def test_a_summary_that_cannot_be_read_is_not_a_missing_one(self, directory, monkeypatch):
        """An error of the file system for a moment must not start a complete run over."""
        run = written(directory, "complete")
        run.manifest.write_text(json.dumps({"made_by": "alphapo"}))
        monkeypatch.setattr(RunDirectory, "differing", lambda self, cfg: [])
        opened = os.open

        def fails(path, *more, **named):
            if path == str(run.summary_file):
                raise OSError(5, "Input/output error")
            return opened(path, *more, **named)

        monkeypatch.setattr(os, "open", fails)
        with pytest.raises(UsageError, match="Input/output error"):
            run.check(self.CFG, replace=False)

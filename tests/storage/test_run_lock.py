"""Claims: one holder at a time, a dead one replaced, a lost one noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alphapo_cli.storage import run_lock
from alphapo_cli.storage.run_lock import LockLost, LockStatus, Owner, RunLock, acquire, lock_status


def other_host(folder: Path, *, silent_for: float) -> Path:
    """A claim of another host whose last heartbeat was `silent_for` seconds ago."""
    claim = acquire(folder)
    assert isinstance(claim, RunLock)
    claim._over.set()
    claim.path.write_text(json.dumps(asdict(replace(Owner.me(), host="elsewhere/b/1"))))
    then = time.time() - silent_for
    os.utime(claim.path, (then, then))
    return claim.path


def dead_owner(folder: Path) -> None:
    """A claim by a process that has ended."""
    code = f"from pathlib import Path; from alphapo_cli.storage.run_lock import acquire; acquire(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestTake:
    def test_one_holder(self, tmp_path):
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        second = acquire(tmp_path)
        assert isinstance(second, LockStatus)
        assert second.owner == Owner.me()

    def test_generations_count_on(self, tmp_path):
        for generation in (1, 2, 3):
            claim = acquire(tmp_path)
            assert isinstance(claim, RunLock)
            assert claim.generation == generation
            claim.release()

    def test_a_dead_owner_on_this_host_is_replaced_at_once(self, tmp_path):
        dead_owner(tmp_path)
        now = lock_status(tmp_path)
        assert now is not None
        assert not now.held
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        assert claim.generation == 2

    def test_a_process_id_that_was_given_to_another_is_dead(self, tmp_path):
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        claim.path.write_text(json.dumps(asdict(replace(Owner.me(), started="1"))))
        assert isinstance(acquire(tmp_path), RunLock)

    @pytest.mark.parametrize(("silent_for", "held"), [(30, True), (90, False)])
    def test_another_users_process_that_proc_hides_lives_by_its_heartbeat(
        self, silent_for, held, tmp_path, monkeypatch
    ):
        """As where /proc is mounted with hidepid: its files cannot be read, a signal to it is not permitted."""
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        claim._over.set()
        os.utime(claim.path, (time.time() - silent_for,) * 2)

        def not_permitted(*_):
            raise PermissionError

        monkeypatch.setattr(run_lock, "_start_time", lambda pid: "")
        monkeypatch.setattr(os, "kill", not_permitted)
        assert isinstance(acquire(tmp_path), LockStatus if held else RunLock)

    @pytest.mark.parametrize(("silent_for", "held"), [(30, True), (90, False)])
    def test_an_owner_on_another_host_is_dead_after_a_minute_of_silence(self, tmp_path, silent_for, held):
        other_host(tmp_path, silent_for=silent_for)
        assert isinstance(acquire(tmp_path), LockStatus if held else RunLock)

    def test_of_many_processes_one_gets_it(self, tmp_path):
        """Also from an owner that they all find dead at the same moment."""
        dead_owner(tmp_path)
        context = multiprocessing.get_context("fork")
        barrier, results = context.Barrier(8), context.Queue()

        def contend() -> None:
            barrier.wait()
            results.put(isinstance(acquire(tmp_path), RunLock))
            barrier.wait()  # stay alive until all have tried

        contenders = [context.Process(target=contend) for _ in range(8)]
        for process in contenders:
            process.start()
        won = [results.get(timeout=30) for _ in contenders]
        for process in contenders:
            process.join()
        assert sum(won) == 1
        assert len(list(tmp_path.glob("000002.*"))) == 1

    def test_a_file_system_without_hard_links(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        assert isinstance(acquire(tmp_path), RunLock)
        assert isinstance(acquire(tmp_path), LockStatus)


class TestLost:
    def test_is_noticed(self, tmp_path):
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        claim.check()
        os.rename(claim.path, claim.path.with_suffix(".dead"))
        with pytest.raises(LockLost, match="has taken over"):
            claim.check()
        with pytest.raises(LockLost):
            claim.commit(tmp_path / "result.json", "mine")
        assert not list(tmp_path.glob("*result*"))

    def test_a_commit_is_final(self, tmp_path, monkeypatch):
        claim = acquire(tmp_path)
        assert isinstance(claim, RunLock)
        seen = []
        move = RunLock._move

        def watched(self, stage):
            if stage == "done":  # not while the result is being written
                seen.append((isinstance(acquire(tmp_path), LockStatus), (tmp_path / "result.json").exists()))
            move(self, stage)

        monkeypatch.setattr(RunLock, "_move", watched)
        claim.commit(tmp_path / "result.json", "mine")
        assert seen == [(True, False)]
        assert (tmp_path / "result.json").read_text() == "mine"
        claim.release()
        now = lock_status(tmp_path)
        assert now is not None
        assert (now.stage, now.generation, now.held) == ("done", 1, False)


class TestOwnerThatStandsStill:
    """At every call between the decision to end and the file's name, and wakes up behind a successor."""

    @pytest.mark.parametrize("stage", ["done", "free"])
    @pytest.mark.parametrize("at", ["before the end", "written", "committed"])
    def test_the_successors_file_is_what_stays(self, at, stage, tmp_path, monkeypatch):
        claim, target = acquire(tmp_path / "claim"), tmp_path / "result.json"
        assert isinstance(claim, RunLock)
        target.write_text("running")
        later: list[RunLock] = []
        begun = []

        def successor():
            begun.append(1)
            now = lock_status(tmp_path / "claim")
            if not now.over:  # found dead
                os.rename(now.path, now.path.with_suffix(".dead"))
            taken = acquire(tmp_path / "claim")
            taken.settle(target)
            later.append(taken)
            assert target.read_text() == ("first" if at == "committed" else "running")
            target.write_text("second")

        move, replace = RunLock._move, os.replace

        def moving(self, to):
            if not begun and (at, to) in (("before the end", "end"), ("written", stage)):
                successor()
            move(self, to)

        def replacing(source, to):
            if not begun and at == "committed" and to == target:
                successor()
            replace(source, to)

        monkeypatch.setattr(RunLock, "_move", moving)
        monkeypatch.setattr(os, "replace", replacing)
        with pytest.raises(LockLost, match="has taken over"):
            claim.commit(target, "first", stage)
        assert target.read_text() == "second"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["claim", "result.json"]
        later[0].release()

    def test_a_file_that_was_given_its_name_meanwhile_is_no_loss(self, tmp_path, monkeypatch):
        claim, target, replace = acquire(tmp_path / "claim"), tmp_path / "result.json", os.replace
        assert isinstance(claim, RunLock)

        def settled(source, to):
            replace(source, to)
            if to == target:
                raise FileNotFoundError

        monkeypatch.setattr(os, "replace", settled)
        claim.commit(target, "first")
        assert target.read_text() == "first"

    def test_a_leftover_without_its_lock_is_not_believed(self, tmp_path):
        target = tmp_path / "result.json"
        target.with_name(".result.json.000001").write_text("of a copy")
        claim = acquire(tmp_path / "claim")
        assert isinstance(claim, RunLock)
        claim.settle(target)
        claim.release()
        assert [path.name for path in tmp_path.iterdir()] == ["claim"]

    def test_one_that_was_killed_after_committing(self, tmp_path, monkeypatch):
        claim, target = acquire(tmp_path / "claim"), tmp_path / "result.json"
        replace = os.replace

        def killed(source, to):
            if to == target:
                raise KeyboardInterrupt
            replace(source, to)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                claim.commit(target, "first")
        assert not target.exists()
        taken = acquire(tmp_path / "claim")
        assert isinstance(taken, RunLock)
        taken.settle(target)
        taken.release()
        assert target.read_text() == "first"


def test_the_heartbeat_goes_on_while_python_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.02)
    claim = acquire(tmp_path)
    assert isinstance(claim, RunLock)
    os.utime(claim.path, (0, 0))
    deadline = time.monotonic() + 10
    while claim.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        sum(range(20_000))
    claim.release()


def test_a_link_whose_answer_got_lost_is_ours(tmp_path, monkeypatch):
    """A network file system tries again and is told that the name exists."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert isinstance(acquire(tmp_path / ".claim"), RunLock)

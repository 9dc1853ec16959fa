"""The lock of a run directory: at most one process works on a run, and a killed process does not block it.

A lock is a file `.claim/<generation>.json` that names its owner (host, process id, start time of the process). It is
written under a temporary name and hard-linked into place, which fails where the name exists, on local and on network
file systems: of several processes that want the same generation one gets it. The highest generation counts. Its owner
renames it to `.end` before it writes the result and to `.done` when the result is on disk beside its final name, or to
`.free` when it gives the run up; a process that finds the owner dead renames it to `.dead`. A rename succeeds once, so
either the owner commits a result or another process takes the run over, never both. A result that was committed and did
not get its name is given it by the next owner, who removes one that was not.

An owner counts as dead when, on this host, there is no process of that id and start time; on another host (or in
another container), when there has been no heartbeat for 60 s. A heartbeat is the file's modification time, compared
with that of a file made just now in the same directory, so that clocks of different hosts do not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from alphapo_cli.errors import AlphapoError
from alphapo_cli.storage import committed_file
from alphapo_cli.storage.atomic import make_folder, sync, write_atomic
from alphapo_cli.storage.made_once import made_once

HEARTBEAT = 5.0  # seconds between two heartbeats
SILENCE = 60.0  # seconds without a heartbeat after which an owner on another host counts as dead
_NAME = re.compile(r"^(\d{6})\.(json|end|done|free|dead)$")


class LockLost(AlphapoError):
    """Another process has taken over the run; this one must not write any more."""


@dataclass(frozen=True)
class Owner:
    """A process, told apart by its start time from a later one with the same id."""

    host: str
    pid: int
    started: str  # as the kernel counts it; empty where there is no /proc

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls(_host(), os.getpid(), _start_time(os.getpid()))

    @property
    def description(self) -> str:
        """Process id and host, for messages."""
        return f"process {self.pid} on {self.host.partition('/')[0]}"


def _host() -> str:
    """Host name, boot id and process namespace: process ids are comparable only where all three agree."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _start_time(pid: int) -> str:
    """The start time of a process as /proc counts it; empty where it is gone or a zombie, or there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = stat[stat.rindex(b")") + 2 :].split()
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()  # zombie or dead


def alive(owner: Owner) -> bool | None:
    """Whether the process runs; None where this host cannot tell."""
    if owner.host != _host():
        return None
    now = _start_time(owner.pid)
    if now and owner.started:
        return now == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None if owner.started else True  # hidden by hidepid: the owner, or a later process with its id
    return not owner.started  # else a zombie


@dataclass(frozen=True)
class LockStatus:
    """The newest lock of a directory."""

    generation: int
    stage: str  # json (held) and end (held, about to commit); done, free, dead
    owner: Owner | None
    path: Path

    @property
    def over(self) -> bool:
        """Whether the lock was released, was taken from a dead owner, or its result is committed."""
        return self.stage not in ("json", "end")

    @property
    def held(self) -> bool:
        """Whether an owner that is not known to be dead holds the lock."""
        if self.over:
            return False
        if self.owner is None:
            return _age(self.path) < SILENCE  # unreadable: held until no heartbeat can have been missed
        running = alive(self.owner)
        return _age(self.path) < SILENCE if running is None else running


def lock_status(folder: Path) -> LockStatus | None:
    """The newest lock in `folder` (a run's .claim/), or None."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return None
    found = [(int(m[1]), m[2]) for name in names if (m := _NAME.match(name))]
    if not found:
        return None
    generation, stage = max(found)
    path = folder / f"{generation:06d}.{stage}"
    try:
        owner = Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        owner = None
    return LockStatus(generation, stage, owner, path)


def _age(path: Path) -> float:
    """Seconds since the file's last heartbeat, by the file system's own clock; 0 for a file that no longer exists."""
    probe = path.with_name(f".{secrets.token_hex(6)}.clock")
    try:
        then = path.stat().st_mtime
        probe.touch()
        return probe.stat().st_mtime - then
    except FileNotFoundError:
        return 0.0
    except OSError:  # read-only: the file system's clock cannot be read, and no process works there
        return time.time() - then
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class RunLock:
    """A lock that this process holds; a thread renews its heartbeat until it is released or lost.

    Args:
        path: the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = int(path.stem)
        self.committed = False  # how the run ended is written, and the lock given up
        self._prepared: tuple[Path, str] | None = None  # file and content that are on disk beside it
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the file is gone: `check` raises in the working thread
                os.utime(self.path)

    def check(self) -> None:
        """Check, before a write, that the lock is still held.

        Raises:
            LockLost: another process has taken over the run.
        """
        if not self.path.exists():
            self._over.set()
            raise LockLost(_lost_message(self.path))

    def _move(self, stage: str) -> None:
        """Rename the lock file to `stage`; raises LockLost where it no longer exists."""
        target = self.path.with_suffix(f".{stage}")
        try:
            os.rename(self.path, target)
        except FileNotFoundError:
            # A network file system may rename, lose the reply and try again; nobody else gives the file that name.
            if not target.exists():
                self._over.set()
                raise LockLost(_lost_message(self.path)) from None
        self.path = target
        sync(target.parent)

    def prepare(self, target: Path, text: str) -> None:
        """Write what `commit` is about to commit, so that a disk which refuses does so before anybody is told of an end.

        Args:
            target: as for `commit`.
            text: its content.

        Raises:
            LockLost: another process has taken over the run.
            OSError: the disk refuses; the lock is still held.
        """
        beside = committed_file.beside(target, self.generation)
        try:
            if self.path.suffix != ".end":  # not so where the disk refused an earlier attempt
                self._move("end")
            write_atomic(beside, text)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        self._prepared = (target, text)

    def commit(self, target: Path, text: str, stage: str = "done") -> None:
        """Write the file that tells how the run ended, and give up the lock, in one step for all other processes.

        Args:
            target: the file; one that is there is replaced.
            text: its content.
            stage: "done" for a result that is final, "free" where another process may go on.

        Raises:
            LockLost: another process has taken over the run; nothing of its work was touched.
            OSError: the disk refuses; the lock is still held.
        """
        beside = committed_file.beside(target, self.generation)
        if self._prepared != (target, text):
            self.prepare(target, text)
        try:
            self._move(stage)
        except BaseException:
            self._prepared = None
            beside.unlink(missing_ok=True)
            raise
        self.committed = True
        self._over.set()
        # From here on another process may hold the lock. It has given the file its name already, or has removed it.
        try:
            os.replace(beside, target)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                if target.read_text(encoding="utf-8") == text:
                    return
            raise LockLost(_lost_message(self.path)) from None
        sync(target.parent)

    def settle(self, target: Path) -> None:
        """Give the file that an earlier owner committed its name, where it had no time to, and remove what was not.

        Args:
            target: the file that `commit` writes.

        Raises:
            OSError: the disk refuses.
        """
        committed_file.settle(self.path.parent, target, self.generation)

    def release(self) -> None:
        """Release the lock for another process; no effect on one that was given up by `commit`, or lost."""
        if not self._over.is_set():
            self._over.set()
            with contextlib.suppress(LockLost):
                self._move("free")


def _lost_message(path: Path) -> str:
    return f"another process has taken over {path.parent.parent}; nothing more is written here"


def acquire(folder: Path) -> RunLock | LockStatus:
    """Acquire the lock of a run.

    Args:
        folder: the run's .claim/, made where it is missing.

    Returns:
        The lock, or the status of the lock that another process holds.
    """
    make_folder(folder)
    while True:
        now = lock_status(folder)
        if now is not None and now.held:
            return now
        if now is not None and not now.over:
            try:
                os.rename(now.path, now.path.with_suffix(".dead"))
            except FileNotFoundError:
                continue  # released, or found dead by another process, at this moment
        generation = 1 if now is None else now.generation + 1
        path = folder / f"{generation:06d}.json"
        if made_once(path, json.dumps(asdict(Owner.me()))):
            return RunLock(path)

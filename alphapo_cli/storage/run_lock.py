"""Who works on a run directory: a claim that a kill cannot leave standing and that two processes cannot both hold.

A claim is a file `.claim/<generation>.json` that names its owner (host, process id, start of the process). Files are
made by linking a finished one into place, which fails where the name exists, on local and on network file systems:
of several processes that want the same generation one gets it. The highest generation counts. Its owner renames it to `.end` before it writes the result and to `.done`
afterwards, or to `.free` when it leaves off; somebody who found the owner dead renames it to `.dead`. A rename succeeds
once, so a result is committed by its owner or the run is taken from it, never both.

Dead means: on this host, no process of that id and start time; on another host (or in another container), no heartbeat
for 60 s. A heartbeat is the file's modification time, compared with that of a file made just now in the same
directory, so that clocks of different hosts do not matter.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from alphapo_cli.errors import AlphapoError

HEARTBEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which an owner on another host counts as dead
_NAME = re.compile(r"^(\d{6})\.(json|end|done|free|dead)$")


class LockLost(AlphapoError):
    """Another process has taken the run over; this one must not write any more."""


@dataclass(frozen=True)
class Owner:
    """A process, recognisable after it died and its id was given to another."""

    host: str
    pid: int
    started: str  # as the kernel counts it; empty where there is no /proc

    @classmethod
    def me(cls) -> Owner:
        return cls(_host(), os.getpid(), _started(os.getpid()))

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


def _host() -> str:
    """Name, boot and process namespace: process ids mean the same only where all three agree."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = stat[stat.rindex(b")") + 2 :].split()
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie works on nothing


def alive(owner: Owner) -> bool | None:
    """Whether the process runs; None where that cannot be known from here."""
    if owner.host != _host():
        return None
    now = _started(owner.pid)
    if now and owner.started:
        return now == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None if owner.started else True  # /proc hides it (hidepid): the owner, or one with its id since
    return not owner.started  # else a zombie


@dataclass(frozen=True)
class LockStatus:
    """The newest claim on a directory."""

    generation: int
    stage: str  # json (held) and end (held, about to commit); done, free, dead
    owner: Owner | None
    path: Path

    @property
    def over(self) -> bool:
        return self.stage not in ("json", "end")

    @property
    def held(self) -> bool:
        """Held by somebody who is not known to be dead."""
        if self.over:
            return False
        if self.owner is None:
            return _age(self.path) < SILENCE  # unreadable: wait until it is certainly nobody's
        running = alive(self.owner)
        return _age(self.path) < SILENCE if running is None else running


def lock_status(folder: Path) -> LockStatus | None:
    """The newest claim in `folder` (a run's .claim/), or None."""
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
    """Seconds since the file's heartbeat, by the file system's own clock; 0 for a file that has just gone."""
    probe = path.with_name(f".{secrets.token_hex(6)}.clock")
    try:
        then = path.stat().st_mtime
        probe.touch()
        return probe.stat().st_mtime - then
    except FileNotFoundError:
        return 0.0
    except OSError:  # a file system that takes no writes has no clock to ask; nobody works there either
        return time.time() - then
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class RunLock:
    """A held claim; a thread keeps its heartbeat until it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = int(path.stem)
        self.committed = False  # the work is final
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="claim", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # gone: `check` says so in the working thread
                os.utime(self.path)

    def check(self) -> None:
        """Before a write.

        Raises:
            ClaimLost: the claim was taken over.
        """
        if not self.path.exists():
            self._over.set()
            raise LockLost(_taken(self.path))

    def _move(self, stage: str) -> None:
        target = self.path.with_suffix(f".{stage}")
        try:
            os.rename(self.path, target)
        except FileNotFoundError:
            self._over.set()
            raise LockLost(_taken(self.path)) from None
        self.path = target

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Around the write that makes the work final.

        Raises:
            ClaimLost: the claim was taken over; the block is not entered.
        """
        self._move("end")
        yield
        self.committed = True
        self._over.set()
        self._move("done")

    def release(self) -> None:
        """Let the next one go on; a claim that is over or lost stays as it is."""
        if not self._over.is_set():
            self._over.set()
            with contextlib.suppress(LockLost):
                self._move("free")


def _taken(path: Path) -> str:
    return f"another process has taken over {path.parent.parent}; nothing more is written here"


def acquire(folder: Path) -> RunLock | LockStatus:
    """Claim the directory whose claims lie in `folder`, or the claim that stands in the way."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        now = lock_status(folder)
        if now is not None and now.held:
            return now
        if now is not None and not now.over:
            try:
                os.rename(now.path, now.path.with_suffix(".dead"))
            except FileNotFoundError:
                continue  # it ended, or somebody else found it dead, at this moment
        generation = 1 if now is None else now.generation + 1
        claim = _link(folder / f"{generation:06d}.json", Owner.me())
        if claim is not None:
            return RunLock(claim)


def _link(path: Path, owner: Owner) -> Path | None:
    """Make the claim file with its content in one step; None where another was faster."""
    beside = path.with_name(f".{os.getpid()}.{secrets.token_hex(6)}.tmp")
    text = json.dumps(asdict(owner))
    try:
        beside.write_text(text)
        try:
            os.link(beside, path)
        except FileExistsError:
            # A network file system may make the link, lose its answer, and refuse the second try: then it is ours.
            return path if beside.stat().st_nlink > 1 else None
        except OSError:  # a file system without hard links: the name is still made once, its content a moment later
            return _write_new(path, text)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _write_new(path: Path, text: str) -> Path | None:
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        return None
    except OSError:  # a full disk: a claim without content would stand in everybody's way
        path.unlink(missing_ok=True)
        raise
    return path

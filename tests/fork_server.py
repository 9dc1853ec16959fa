"""Processes of `alphapo` without their imports: forked from one that has imported everything and done nothing.

For tests that need a process of its own (signals, kills, what is left behind) and do not look at how it starts. A fork
has its own process id, streams, directory, environment and signal handlers, ends as an interpreter ends, and is handled
like any `subprocess.Popen`. What it shares with its siblings is the seed of hashes; what only a cold start shows stays
with `cli`. A second kind of server has imported vLLM, and its forks run scripts such as `alphapo_cli`'s own worker.

Started as a script this module is the server. It has one thread, or it would not fork. For Linux.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PRELOADED = {
    # What `alphapo train` and `alphapo sweep` import.
    "alphapo": (
        "alphapo_cli.cli.main", "alphapo_cli.stages.train", "alphapo_cli.stages.training.session",
        "alphapo_cli.stages.training.tracker", "alphapo_cli.stages.training.inputs", "alphapo_cli.sweep.directory",
        "alphapo_cli.training.trainer", "alphapo_cli.probe.probe", "alphapo_cli.launch.engine",
        "transformers.models.llama.modeling_llama", "peft",
    ),
    # What an engine on the CPU imports, a model's own module excepted.
    "vllm": (
        "vllm", "vllm.engine.arg_utils", "vllm.lora.request", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker",
        "vllm.model_executor.layers.quantization.online.base", "vllm.model_executor.models.llama",
    ),
}  # fmt: skip
# Variables that nothing reads while it is imported, and those that torch sets by itself then. LD_LIBRARY_PATH, which
# vLLM and cv2 set where they are imported, is read when a program starts. Any other difference is refused.
_READ_LATE = {
    "alphapo": ("ALPHAPO_", "PYTEST_", "KMP_", "TORCHINDUCTOR_", "LD_LIBRARY_PATH"),
    # Models are folders here, so that what is said of the hub decides nothing; vLLM reads its own variables as it goes.
    "vllm": (
        "ALPHAPO_", "PYTEST_", "KMP_", "TORCHINDUCTOR_", "LD_LIBRARY_PATH", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "WANDB_",
        "XDG_CACHE_HOME", "RANK", "WORLD_SIZE", "LOCAL_RANK",
    ),
}  # fmt: skip
_MESSAGE = 1 << 20  # bytes, at most


def importable(env: Mapping[str, str], kind: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_READ_LATE[kind])}


class Server:
    """The preloaded process of a kind in PRELOADED, for as long as this object is there."""

    def __init__(self, env: Mapping[str, str], kind: str = "alphapo") -> None:
        self.kind, self.env = kind, importable(env, kind)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            line = [sys.executable, "-P", str(Path(__file__).resolve()), str(theirs.fileno()), kind]
            self.process = subprocess.Popen(line, env=self.env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        if self.channel.recv(_MESSAGE) != b"ready":
            raise RuntimeError("the fork server did not start")

    def close(self) -> None:
        self.channel.close()
        self.process.wait(60)

    def popen(self, arguments: list[str], *, env: Mapping[str, str], **settings: Any) -> Forked:
        """`subprocess.Popen([alphapo, *arguments], ...)`; of vLLM's, `subprocess.Popen([python, "-P", script, ...], ...)`.

        Raises:
            ValueError: the environment differs in what may be read by imports.
        """
        different = importable(env, self.kind).items() ^ self.env.items()
        if different:
            raise ValueError(f"not as the server was started: {sorted({name for name, _ in different})}")
        return Forked(self, arguments, env=env, **settings)

    def run(self, arguments: list[str], *, timeout: float = 300, **settings: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run([alphapo, *arguments], capture_output=True, text=True, ...)`."""
        with self.popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class Forked(subprocess.Popen):
    """A child of the server: started and waited for through it, everything else as the base class does it."""

    def __init__(self, server: Server, arguments: list[str], **settings: Any) -> None:
        self.server = server
        self.cpu = 0.0
        super().__init__(arguments, **settings)

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ) -> None:  # fmt: skip
        assert preexec_fn is None
        if args[1:3] == ["-m", "alphapo_cli"]:
            args = [args[0], *args[3:]]
        if args[1:2] == ["-P"]:
            args = args[2:]
        request = {
            "arguments": args, "cwd": os.fspath(cwd or Path.cwd()), "env": dict(env), "session": start_new_session,
            "passed": pass_fds,
        }  # fmt: skip
        self.told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            streams = [number if fd == -1 else fd for number, fd in enumerate((p2cread, c2pwrite, errwrite))]
            message = json.dumps(request).encode()
            assert len(message) < _MESSAGE
            socket.send_fds(self.server.channel, [message], [*streams, theirs.fileno(), *pass_fds])
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        # Its id, and that it has become what was asked for: the two come from the server and the child, in any order.
        said = {self.told.recv(_MESSAGE), self.told.recv(_MESSAGE)} - {b"begun"}
        if len(said) != 1 or b"" in said:
            raise RuntimeError("the fork server could not start it")
        self.pid = int(said.pop())
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As os.waitpid; the server says how it ended."""
        ready, _, _ = select.select([self.told], [], [], 0 if wait_flags & os.WNOHANG else None)
        if not ready:
            return 0, 0
        answer = self.told.recv(_MESSAGE)
        self.told.close()
        if not answer:
            raise RuntimeError("the fork server is gone")
        status, cpu = json.loads(answer)
        _count(cpu)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _count(cpu: float) -> None:
    from tests import durations

    durations.elsewhere += cpu


def _serve(channel: socket.socket) -> bool:
    """Forks as it is asked to; returns True in a child, which is to run the line in sys.argv, and False at the end."""
    children: dict[int, tuple[int, socket.socket]] = {}  # descriptor of a process -> its id, who waits for it
    while True:
        waited: list[Any] = [channel, *children]
        ready, _, _ = select.select(waited, [], [])
        for descriptor in [d for d in ready if d in children]:
            pid, told = children.pop(descriptor)
            _, status, used = os.wait4(pid, 0)
            os.close(descriptor)
            with told, contextlib.suppress(OSError):  # nobody may be waiting any more
                told.send(json.dumps([status, used.ru_utime + used.ru_stime]).encode())
        if channel not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE, 8)
        if not message:
            return False
        streams, answer, passed = descriptors[:3], descriptors[3], descriptors[4:]
        assert not _threads(), f"would be lost halfway: {_threads()}"
        pid = os.fork()
        if pid == 0:
            channel.close()
            for descriptor, (_, other) in children.items():
                os.close(descriptor)
                other.close()
            _become(json.loads(message), streams, passed)
            with socket.socket(fileno=answer) as told:
                told.send(b"begun")
            return True
        for descriptor in (*streams, *passed):
            os.close(descriptor)
        told = socket.socket(fileno=answer)
        with contextlib.suppress(OSError):
            told.send(str(pid).encode())
        children[os.pidfd_open(pid)] = pid, told


def _threads() -> list[str]:
    """Names of the threads beside the first. That of Arrow's jemalloc does not count: it handles forks itself."""
    tasks = Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())]
    return [name for name in names if name != "jemalloc_bg_thd"]


def _become(request: dict[str, Any], streams: list[int], passed: list[int]) -> None:
    """What a process gets from the one that starts it. Descriptors that a line names are told by their numbers here."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in streams:
        if descriptor > 2:
            os.close(descriptor)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # As `random` does after a fork by itself; torch starts from a fixed seed.
    sys.modules["numpy"].random.seed()
    numbers = {str(there): str(here) for there, here in zip(request["passed"], passed, strict=True)}
    sys.argv = [numbers.get(word, word) for word in request["arguments"]]


@contextlib.contextmanager
def serving(env: Mapping[str, str], kind: str = "alphapo") -> Iterator[Server]:
    server = Server(env, kind)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    _channel = socket.socket(fileno=int(sys.argv[1]))
    _channel.set_inheritable(False)
    _kind = sys.argv[2]
    # As pytest's process has it, and a shell's children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _name in PRELOADED[_kind]:
        importlib.import_module(_name)
    gc.collect()
    gc.freeze()
    _channel.send(b"ready")
    if _serve(_channel):
        if _kind == "alphapo":
            from alphapo_cli.cli.main import main

            main()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")

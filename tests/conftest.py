"""Fixtures of the end-to-end tests: two ways to run the command line, one warm cache, small data and trained runs.

A process that trains spends five seconds on imports, so most tests call the entry point in this process (`alphapo`);
what only a process of its own can show (signals, kills, state that is left behind) is forked from one that has them
(`forked`), and what only the installed command can show (start, imports, seeds of hashes) goes through `cli`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before torch is imported: test processes side by side would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.durations import Durations
from tests.fork_server import Forked, Server, serving
from tests.selection import pytest_ignore_collect as pytest_ignore_collect

# A shell starts what it puts into the background with Ctrl-C ignored, and every process started here would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup with this one

# A shared machine may stop for longer than Hypothesis allows an example. The same examples in every run; new ones each
# night, by --hypothesis-profile=nightly.
settings.register_profile("here", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, print_blob=True)
settings.load_profile("here")

# Four steps of eight pairs in the embedded world: a second, with every kind of file that a real run writes.
TINY = (
    "trainer.max_steps=4", "trainer.per_device_train_batch_size=8", "data.glassbox.pairs=64", "probe.pairs=8",
    "probe.every=2", "probe.samples=8", "probe.max_new_tokens=12",
)  # fmt: skip
# Without what costs time and is tested elsewhere.
BARE = ("tracking.mode=disabled", "tracking.pictures=false")
SCRATCH = (
    "model=from_scratch", "model.scratch.hidden_size=16", "model.scratch.num_hidden_layers=1",
    "model.scratch.num_attention_heads=2", "model.scratch.vocab_size=320", "trainer=small", "trainer.threads=1",
    "trainer.use_cpu=true", "trainer.max_steps=2", "trainer.per_device_train_batch_size=4", "probe.pairs=4",
    "probe.every=2", "probe.samples=0",
)  # fmt: skip
# What would change a run from outside, or let it reach the network.
_FOREIGN = ("ALPHAPO_", "WANDB_", "HF_", "TRANSFORMERS_", "XDG_CACHE_HOME", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """The directory that the first line on stdout names."""
        return Path(self.out.splitlines()[0])

    @property
    def fault(self) -> str:
        """The one line on stderr of a refused command; it is all that stderr holds."""
        (line,) = self.err.splitlines()
        return line


MEMORY = Path("/dev/shm")
_ROOM = 6 << 30  # bytes that must be free there: four times what the files of a run of all tests take


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Durations(config))
    _into_memory()


def _into_memory() -> None:
    """Temporary files of tests lie in memory where there is room; PYTEST_DEBUG_TEMPROOT=/tmp puts them on a disk.

    Everything that must survive a crash is synced, tens of thousands of times in a run, and a disk may take ten
    milliseconds each time.
    """
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    found = os.statvfs(MEMORY)
    available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if found.f_bavail * found.f_frsize >= _ROOM and available and int(available[1]) * 1024 >= _ROOM:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


@pytest.fixture(scope="module", autouse=True)
def _young_garbage() -> None:
    """Every run ends with a collection of garbage: not again through all that a hundred runs have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment_put_back() -> Iterator[None]:
    """Libraries set variables as they are used (TOKENIZERS_PARALLELISM, WANDB_MODE): not for the tests that follow."""
    with unittest.mock.patch.dict(os.environ):
        yield


# Tests of tests/evaluation/ with one of these in their names read the picture of an evaluation.
_PAINTED = ("judgements_of_the_public_tool", "writes_alpacaevals_files")


@pytest.fixture(autouse=True)
def _pictures_are_made_and_not_painted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting takes a third of the time of a small evaluation."""
    if request.path.parent.name != "evaluation" or any(part in request.node.name for part in _PAINTED):
        return

    def make(results: Any, path: Any, *rates: Any) -> None:
        from alphapo_cli.plots.evaluation import evaluation_figure

        evaluation_figure(results, *rates)

    monkeypatch.setattr("alphapo_cli.plots.evaluation.evaluation_picture", make)


def environment(cache: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    return {**kept, "ALPHAPO_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(extra or {})}


def run_here(arguments: tuple[str, ...], cwd: Path, cache: Path, env: dict[str, str] | None = None) -> Ran:
    """The entry point in this process: streams, directory, environment and signal handlers are put back."""
    from huggingface_hub import constants

    from alphapo_cli.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            contextlib.chdir(cwd),
            unittest.mock.patch.dict(os.environ, environment(cache, env), clear=True),
            unittest.mock.patch.object(sys, "argv", ["alphapo", *arguments]),
            unittest.mock.patch.object(constants, "HF_HUB_OFFLINE", True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    code = ended.value.code
    return Ran(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def entry_point() -> list[str]:
    """The installed command, or its module form where only the package is on the path."""
    script = Path(sys.executable).with_name("alphapo")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "alphapo_cli"]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """(a directory that all workers of this run share, what `make` returned when it filled it): the first one makes it.

    Whoever comes meanwhile waits. A maker that failed leaves nothing, and the next one tries again.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    result = folder.with_suffix(".pickle")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            made = pickle.dumps(make(folder))
            result.write_bytes(made)
        return folder, pickle.loads(result.read_bytes())


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for ALPHAPO_CACHE that lives as long as the test session; each worker has its own.

    It holds a stand-in for the embedded base policy, made by the same code from a tenth of its demonstrations, under
    the real one's name: two seconds instead of twenty. `real_cache` has the real one.
    """
    from alphapo_cli.stages.training import glassbox_base

    key = glassbox_base.base_key()

    def make(folder: Path) -> None:
        with unittest.mock.patch.object(glassbox_base, "DEMONSTRATIONS", glassbox_base.DEMONSTRATIONS // 10):
            glassbox_base.ensure(folder, verbose=False).rename(folder / "base" / key)

    made, _ = once(tmp_path_factory, "cache", make)
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(made, cache, dirs_exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the embedded base policy as users get it. For slow tests."""
    from alphapo_cli.stages.training import glassbox_base

    made, _ = once(tmp_path_factory, "real-cache", lambda folder: glassbox_base.ensure(folder, verbose=False))
    cache = tmp_path_factory.mktemp("real-cache")
    shutil.copytree(made, cache, dirs_exist_ok=True)
    return cache


@pytest.fixture
def alphapo(tmp_path: Path, shared_cache: Path) -> Callable[..., Ran]:
    """`alphapo("train", ...)` in this process, by default in the test's own directory and with the shared cache."""

    def run(
        *arguments: str, cwd: Path = tmp_path, cache: Path = shared_cache, env: dict[str, str] | None = None
    ) -> Ran:
        return run_here(arguments, cwd, cache, env)

    return run


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Ran]:
    """`cli("train", ...)` through the installed command, in a process of its own."""

    def run(*arguments: str, cwd: Path = tmp_path, cache: Path | None = None, env: dict[str, str] | None = None) -> Ran:
        where = environment(cache or tmp_path / "no-cache", env)
        done = subprocess.run(
            [*entry_point(), *arguments], cwd=cwd, env=where, capture_output=True, text=True, timeout=300
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Server]:
    with serving(environment(Path("set by each process"))) as server:
        yield server


@pytest.fixture
def forked(tmp_path: Path, fork_server: Server) -> Callable[..., Ran]:
    """`forked("train", ...)` in a process of its own that does not start cold."""

    def run(*arguments: str, cwd: Path = tmp_path, cache: Path | None = None, env: dict[str, str] | None = None) -> Ran:
        where = environment(cache or tmp_path / "no-cache", env)
        done = fork_server.run([entry_point()[0], *arguments], cwd=cwd, env=where)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def vllm_server() -> Iterator[Server]:
    """Its forks have imported vLLM, which is most of what the start of a small engine takes."""
    from alphapo_cli.generation.vllm_process import ENVIRONMENT

    with serving({**environment(Path("set by each process")), **ENVIRONMENT}, "vllm") as server:
        yield server


@contextlib.contextmanager
def engines_of(server: Server) -> Iterator[None]:
    """Engines that commands start in this process are forked from `server`: every one but that of `test_pipeline`."""
    from alphapo_cli.generation import vllm_process

    def popen(line: list[str], **settings: Any) -> Forked:
        assert line[:3] == [sys.executable, "-P", str(vllm_process.WORKER)]
        return server.popen(line, **settings)

    # In that module alone: others start processes as well.
    stand_in = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    with unittest.mock.patch.object(vllm_process, "subprocess", stand_in):
        yield


@pytest.fixture
def warm_engines(vllm_server: Server) -> Iterator[None]:
    with engines_of(vllm_server):
        yield


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


THINGS = ("apple", "river", "hammer", "violin", "planet", "carpet", "engine", "orchid", "window", "pepper")


def plain_rows(count: int = 40) -> list[dict[str, Any]]:
    """Text pairs with their own prompts."""
    return [
        {
            "prompt": f"Say something about {THINGS[i % 10]} number {i}.",
            "chosen": f"The {THINGS[i % 10]} is a fine thing, number {i} above all.",
            "rejected": f"No. Ask me about the {THINGS[(i + 3) % 10]}.",
        }
        for i in range(count)
    ]


def dialogue_rows(count: int = 40) -> list[dict[str, Any]]:
    """Whole dialogues in both columns, as HH-RLHF has them."""
    rows = []
    for i, row in enumerate(plain_rows(count)):
        start = f"\n\nHuman: {row['prompt']}"
        if i % 2:
            start += f"\n\nAssistant: Which one?\n\nHuman: The {THINGS[i % 10]} over there."
        rows.append({side: f"{start}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")})
    return rows


def message_rows(count: int = 40) -> list[dict[str, Any]]:
    """Whole message lists in both columns, as UltraFeedback-binarized has them."""

    def conversation(row: dict[str, Any], side: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]

    return [{side: conversation(row, side) for side in ("chosen", "rejected")} for row in plain_rows(count)]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small data sets by form: plain, dialogue and message."""
    makers = {"plain": plain_rows, "dialogue": dialogue_rows, "message": message_rows}

    def make(folder: Path) -> dict[str, Path]:
        return {form: write_rows(folder / f"{form}.jsonl", rows()) for form, rows in makers.items()}

    return once(tmp_path_factory, "pairs", make)[1]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Ran:
    """One complete run of the embedded world with W&B (offline) and pictures. Read it, never write to it."""
    line = ("train", *TINY, "--json", "result.json")
    return _ran_once(tmp_path_factory, "trained", line, shared_cache)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, pairs: dict[str, Path]) -> Ran:
    """One complete run of a model from scratch on dialogues, by sft. Read it, never write to it."""
    line = ("train", "objective=sft", *SCRATCH, *BARE, "data=jsonl", f"data.path={pairs['dialogue']}")
    return _ran_once(tmp_path_factory, "scratch", line, shared_cache)


def _ran_once(factory: pytest.TempPathFactory, name: str, line: tuple[str, ...], cache: Path) -> Ran:
    """What a command line did in a directory that all workers share."""

    def make(folder: Path) -> Ran:
        ran = run_here(line, folder, cache)
        assert ran.code == 0, ran.err
        return ran

    return once(factory, name, make)[1]


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[int, int]]]:
    """Every file below a directory with its time of change and size, but for the log of W&B's service, which ends later."""

    def take(folder: Path) -> dict[str, tuple[int, int]]:
        return {
            str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != "debug-core.log"
        }

    return take


def strict_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, by a reader that refuses NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a JSON Lines file, refusing NaN and Infinity."""
    return strict_rows


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides of a run that takes a second, without W&B and pictures."""
    return (*TINY, *BARE)


@pytest.fixture
def scratch_line(pairs: dict[str, Path]) -> tuple[str, ...]:
    """Overrides of a run from random weights on dialogues that takes a second."""
    return (*SCRATCH, *BARE, "data=jsonl", f"data.path={pairs['dialogue']}")


@pytest.fixture
def interrupt() -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Sends this process SIGTERM as soon as a condition holds, as a scheduler does."""
    import threading
    import time

    over = threading.Event()

    def arm(condition: Callable[[], bool]) -> None:
        def watch() -> None:
            while not over.is_set():
                # Only while a command is there to take it; the signal would end the tests otherwise.
                handler = signal.getsignal(signal.SIGTERM)
                if getattr(handler, "__module__", "") == "alphapo_cli.runtime.signals" and condition():
                    # To the thread that Python lets handle it.
                    main_thread = threading.main_thread().ident
                    assert main_thread is not None
                    signal.pthread_kill(main_thread, signal.SIGTERM)
                    return
                time.sleep(0.005)

        threading.Thread(target=watch, daemon=True).start()

    yield arm
    over.set()

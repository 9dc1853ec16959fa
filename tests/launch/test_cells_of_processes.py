"""Cells of several processes: the same results as in one, and what a killed process leaves is finished by the same line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from alphapo_cli.config.schema import TrainConfig, TrainerConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.launch import torchrun
from alphapo_cli.launch.launchers import local, registry
from alphapo_cli.launch.launchers.launcher import CellJob, CellProcesses, Ended
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


# In rank 1 alone the fourth step has no more room.
FAULT = """
import importlib.abc, importlib.util, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "alphapo_cli.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            plain = module.PreferenceTrainer.training_step

            def step(self, *args, **named):
                if self.state.global_step == 3:
                    raise MemoryError("no more room")
                return plain(self, *args, **named)

            module.PreferenceTrainer.training_step = step

        spec.loader.exec_module = exec_module
        return spec

if os.environ.get("RANK") == "1":
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_an_error_in_one_process_is_that_of_the_cell(
    tiny: tuple[str, ...], tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(FAULT)
    path = os.environ.get("PYTHONPATH")
    words = ["sweep", "alpha", f"{ALPHA}=0.5", *tiny, *CELL, "launcher.nproc_per_node=2", "--out", "two"]
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "hooks"), path])))
        with start(words, tmp_path, shared_cache) as process:
            _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    says = "process 1: MemoryError: no more room"
    assert err.splitlines()[-1].endswith(says)
    (cell,) = cells_of(tmp_path / "two").values()
    assert (cell["state"], cell["reason"]) == ("failed", says)
    with start(words, tmp_path, shared_cache) as process:  # without the fault it goes on from its checkpoint
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert commits(tmp_path / "two") == [1]


class TestSteps:
    """Several processes divide the steps of one: the pairs of a step do not depend on their number."""

    @pytest.mark.parametrize(
        ("micro", "accumulation", "processes"),
        [(2, 4, 2), (2, 4, 3), (8, 1, 2), (8, 1, 8), (6, 1, 4), (7, 1, 2), (3, 2, 5), (16, 8, 8)],
    )
    def test_every_pair_of_a_step_is_trained_on_once(self, micro: int, accumulation: int, processes: int) -> None:
        cfg = TrainerConfig(per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
        alone = DataOrder.of(cfg, 137, 1, seed=3)
        divided = alone.divided(processes)
        assert divided.total_steps == alone.total_steps
        for step in range(alone.total_steps):
            parts = [divided.micro_batches(step, rank) for rank in range(processes)]
            assert len({len(part) for part in parts}) == 1  # as many backward passes in each
            trained = [
                int(pair)
                for part in parts
                for pairs, weights in part
                for pair, w in zip(pairs, weights, strict=True)
                if w
            ]
            assert sorted(trained) == sorted(alone.pairs(step).tolist())
            assert max(len(pairs) for part in parts for pairs, _ in part) <= micro
        full = [sum(weights) for rank in range(processes) for _, weights in divided.micro_batches(0, rank)]
        assert min(sum(w for _, ws in divided.micro_batches(0, rank) for w in ws) for rank in range(processes)) > 0, (
            full
        )

    def test_a_step_of_fewer_pairs_than_processes_is_refused(self) -> None:
        cfg = TrainerConfig(per_device_train_batch_size=3)
        with pytest.raises(UsageError, match="use at most 3"):
            DataOrder.of(cfg, 9, 1, seed=0).divided(4)


def cells(**trainer: Any) -> list[TrainConfig]:
    return [TrainConfig(trainer=TrainerConfig(**trainer))]


class TestPlaces:
    """GPUs, cores and threads that cells get."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6")
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))

    def test_each_worker_has_a_group_of_gpus_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str | None] = []

        class Stub:
            def __init__(self, number: int, log: Path, gpus: str | None) -> None:
                self.connection = number
                made.append(gpus)

        monkeypatch.setattr(local, "Worker", Stub)
        count = local.worker_count(None, cells(), 2)
        local.LocalLauncher(count, tmp_path, 2)
        assert made == ["0,1", "2,3", "4,5"]

    def test_more_processes_than_gpus_are_refused(self) -> None:
        cfg = LauncherConfig(nproc_per_node=8)
        with pytest.raises(UsageError, match="each process takes a GPU, and GPUs here: 7; take at most 7"):
            registry.check_processes(cfg, cells())
        registry.check_processes(cfg, cells(use_cpu=True))
        task = LauncherConfig(name="slurm", nproc_per_node=4, gpus=2)
        with pytest.raises(UsageError, match="gpus is 2; take at most 2"):
            registry.check_processes(task, cells())

    def test_cores_are_shared_out(self) -> None:
        """12 cores, no GPU is used: cells abreast and threads in each process."""

        def found(nproc: int, workers: int | None = None, **trainer: Any) -> tuple[int, int]:
            listed = 4 * cells(use_cpu=True, **trainer)
            cfg = LauncherConfig(nproc_per_node=nproc, workers=workers)
            return local.worker_count(workers, listed, nproc), registry.processes_of(cfg, listed).threads

        assert found(2) == (1, 6)
        assert found(5) == (1, 2)
        assert found(2, workers=3) == (3, 2)
        assert found(2, threads=1)[0] == 6
        assert found(24) == (1, 1)
        assert registry.processes_of(LauncherConfig(name="slurm", nproc_per_node=4, cpus=8), cells()).threads == 2


SHARDED = ("sharding.mode=fsdp", "trainer.use_cpu=false")
IMPOSSIBLE = [
    (("launcher.nodes=2",), "launcher.nodes has no meaning for launcher=local; it belongs to slurm and ray"),
    (("launcher.nproc_per_node=33",), "divide its optimizer steps among them, and a step has 32 pair(s)"),
    (("launcher=slurm", "launcher.nproc_per_node=2", "launcher.gpus=1"), "launcher.gpus is 1; take at most 1"),
    ((*SHARDED, "launcher.nproc_per_node=3", "sharding.shard_size=2"), "does not divide the 3 process(es)"),
]
# What a cell would find out as it starts.
OF_CELLS = [
    (
        (*SHARDED, "sharding.shard_size=2,3", "launcher.nproc_per_node=2"),
        "sharding.shard_size=3: does not divide the 2",
    ),
    (
        (*SHARDED, "launcher=ray", "launcher.nodes=2", "launcher.nproc_per_node=3", "sharding.shard_size=4"),
        "does not divide the 6 process(es)",
    ),
    (("launcher.nproc_per_node=2", "sharding.shard_size=2"), "nothing is sharded while sharding.mode=none"),
    ((*SHARDED, "trainer.optim=adafactor"), "is not known to work on shards"),
    ((*SHARDED, "model.lora.r=2", "model.merge=true"), "model.merge=true needs the whole model in one process"),
    ((*SHARDED, "model.lora.r=2", "model.quantization=nf4"), "model.quantization=nf4 cannot be sharded"),
    ((*SHARDED, "launcher=slurm", "sharding.cpu_offload=true"), "without CUDA"),
]


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        *((command, *one) for command in ("sweep", "sweep --dry-run", "plan sweep", "validate") for one in IMPOSSIBLE),
        *(("sweep", *one) for one in OF_CELLS),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    command: str, words: tuple[str, ...], says: str, alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    name = () if command == "validate" else ("alpha",)
    ran = alphapo(*command.split(), *name, f"{ALPHA}=0,1", *words)
    assert ran.code == 2
    assert says in ran.fault
    assert not (tmp_path / "runs").exists()


def test_the_plan_of_a_sweep_knows_of_the_processes_of_a_cell(
    alphapo: Callable[..., Ran], scratch_line: tuple[str, ...]
) -> None:
    def planned(*words: str) -> dict[str, Any]:
        ran = alphapo(
            "plan", "sweep", "alpha", f"{ALPHA}=0,1", *scratch_line, "launcher.workers=1", *words, "--json", "-"
        )
        assert ran.code == 0, ran.err
        found: dict[str, Any] = json.loads(ran.out.splitlines()[-1])
        return found

    one, two = planned(), planned("launcher.nproc_per_node=2")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["kinds"][0]["pairs_per_step"] == two["kinds"][0]["pairs_per_step"] == 4
    assert one["kinds"][0]["steps"] == two["kinds"][0]["steps"]
    assert two["kinds"][0]["memory"]["largest_micro_batch"]["pairs"] == 2  # of the four that one process has at once


# A stand-in for a rank: it waits until both listen, then does as it is told.
RANK = """
import os, shutil, signal, sys, time
from pathlib import Path

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
here = Path(sys.argv[0]).parent
kind = (here / "kinds").read_text().splitlines()[rank]

def end(made, code):
    shutil.copy(here / f"{made}.pickle", folder / f".beside-{rank}")
    (folder / f".beside-{rank}").rename(folder / f"ended-{rank}.pickle")
    (here / f"{made}-{rank}").touch()
    sys.exit(code)

signal.signal(signal.SIGTERM, signal.SIG_DFL if kind == "dies when told" else signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda number, frame: end("interrupted", 0))
(folder / f"listens-{rank}").touch()
(here / f"listens-{rank}").touch()
while not (folder / f"listens-{1 - rank}").exists():
    time.sleep(0.01)
if kind == "is killed":
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "crashes":
    sys.exit(7)
if kind in ("waits", "dies when told"):
    time.sleep(60)
end(kind, int(kind in ("failed", "busy")))
"""


class TestEnds:
    """What is made of the ends of two ranks, which are stand-ins without torch."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
        script = tmp_path / "rank.py"
        script.write_text(RANK)
        monkeypatch.setattr(torchrun, "RANK", (str(script),))
        job = CellJob(str(tmp_path / "s"), str(tmp_path), "c", (), TrainConfig(), None, CellProcesses(2))
        for state in ("complete", "failed", "busy", "interrupted"):
            (tmp_path / f"{state}.pickle").write_bytes(pickle.dumps(Ended(job, state, f"so it {state}")))

        def run(*kinds: str) -> Ended:
            (tmp_path / "kinds").write_text("\n".join(kinds))
            return torchrun.train_in_processes(job, torchrun.Node())

        return run

    @pytest.mark.parametrize(
        ("kinds", "state", "says"),
        [
            (("complete", "is killed"), "complete", "so it complete"),  # it was committed before
            (("dies when told", "failed"), "failed", "so it failed"),
            (("failed", "is killed"), "lost", "process 1 of the 2 of the cell died (killed by SIGKILL)"),
            (("crashes", "dies when told"), "lost", "process 0 of the 2 of the cell died (exit code 7)"),
            (("busy", "dies when told"), "busy", "so it busy"),
        ],
    )
    def test_how_a_cell_ended(self, kinds: tuple[str, ...], state: str, says: str, run: Callable[..., Ended]) -> None:
        ended = run(*kinds)
        assert (ended.state, ended.reason) == (state, says)

    def test_a_signal_is_passed_on_to_every_rank(
        self, run: Callable[..., Ended], tmp_path: Path, send_when_both_listen: Callable[[int], None]
    ) -> None:
        before = signal.getsignal(signal.SIGTERM)
        send_when_both_listen(signal.SIGTERM)
        began = time.monotonic()
        ended = run("waits", "waits")
        assert (ended.state, ended.reason) == ("interrupted", "so it interrupted")
        assert time.monotonic() - began < 40
        assert signal.getsignal(signal.SIGTERM) == before

    def test_a_handler_that_ends_the_task_lets_the_ranks_save(
        self, run: Callable[..., Ended], tmp_path: Path, send_when_both_listen: Callable[[int], None]
    ) -> None:
        """As submitit's does, when it has requeued a task that runs out of time."""
        before = signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(1))
        try:
            send_when_both_listen(signal.SIGUSR2)
            with pytest.raises(SystemExit):
                run("waits", "waits")
        finally:
            signal.signal(signal.SIGUSR2, before)
        assert all((tmp_path / f"interrupted-{rank}").exists() for rank in (0, 1))

    @pytest.fixture
    def send_when_both_listen(self, tmp_path: Path) -> Callable[[int], None]:
        """Sends a signal to this process as soon as both ranks listen."""
        main = threading.main_thread().ident
        assert main is not None

        def send(number: int) -> None:
            def watch() -> None:
                while not all((tmp_path / f"listens-{rank}").exists() for rank in (0, 1)):
                    time.sleep(0.01)
                signal.pthread_kill(main, number)

            threading.Thread(target=watch, daemon=True).start()

        return send

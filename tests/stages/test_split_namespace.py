"""An owner on another host that stands still: a process in a namespace of its own, stopped by SIGSTOP.

`test_split_brain` has the same within one process. Here the ids of processes mean nothing to one another, as between
hosts, so that only the heartbeat tells that the owner lives; it is set back instead of waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alphapo_cli.storage import run_lock
from tests.conftest import BARE, TINY, environment
from tests.evaluation.eval_world import Case
from tests.stages.test_resume import record, weights

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")
TRAIN = ("train", *TINY, *BARE, "trainer.max_steps=3", "trainer.save_steps=1", "probe.every=1", "probe.samples=0")
TRAINING = (
    "the model is written", "the model is about to be renamed", "the model was renamed", "a checkpoint is written",
    "a checkpoint is about to be renamed", "a checkpoint was saved", "a row was written", "the summary is written",
)  # fmt: skip
QUICK = "the model is about to be renamed"
OVER = 2 * run_lock.SILENCE  # seconds of silence after which an owner counts as dead
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def unshare() -> tuple[str, ...]:
    for command in (UNSHARE, (UNSHARE[0], "--user", "--map-root-user", *UNSHARE[1:])):
        ran = subprocess.run([*command, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
        if ran is not None and ran.returncode == 0:
            return command
    pytest.skip(f"no process namespace here: {'no unshare' if ran is None else ran.stderr.strip()}")


class Owner:
    """A line of alphapo in another namespace, stopped at a point."""

    def __init__(self, unshare: tuple[str, ...], point: str, line: tuple[str, ...], place: Path, cache: Path) -> None:
        mark = place / "stopped"
        env = {**environment(cache), "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        # The shell is the namespace's first process, which takes no SIGSTOP from within.
        inner = ["sh", "-c", '"$@" & wait $!', "sh", sys.executable, "-m", "tests.stages.stopped_owner"]
        self.process = subprocess.Popen(
            [*unshare, *inner, point, str(mark), *line], cwd=place, env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        while not (mark.exists() and self.state() == "T"):
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.1)

    def child(self) -> int | None:
        """The id, here, of the process furthest down."""
        pid, found = self.process.pid, None
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = found = int(children[0])
            if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                break
        return found

    def state(self) -> str | None:
        child = self.child()
        return None if child is None else Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]

    def wake(self) -> tuple[int, str]:
        """Let it go on; exit code and stderr."""
        child = self.child()
        assert child is not None
        os.kill(child, signal.SIGCONT)
        _, err = self.process.communicate(timeout=600)
        return self.process.returncode, err


@pytest.fixture
def stopped(unshare: tuple[str, ...], tmp_path: Path, shared_cache: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(point: str, *line: str) -> Owner:
        owners.append(Owner(unshare, point, line, tmp_path, shared_cache))
        return owners[-1]

    yield start
    for owner in owners:
        if owner.process.poll() is None:
            owner.process.kill()  # with the namespace's first process all others end


def silent_for_long(run: Path) -> None:
    """Set the heartbeat back, as if the owner had been silent all that time."""
    then = time.time() - OVER
    for file in (run / ".claim").glob("*"):
        os.utime(file, (then, then))


@pytest.mark.parametrize(
    "point", [point if point == QUICK else pytest.param(point, marks=pytest.mark.nightly) for point in TRAINING]
)
def test_the_successors_run_is_what_stays(point, stopped, alphapo, tmp_path):
    alone = alphapo(*TRAIN, "run.name=alone", "seed=1")
    assert alone.code == 0, alone.err
    owner = stopped(point, *TRAIN, "run.name=x", "seed=0")
    path = tmp_path / "runs" / "x"
    refused = alphapo(*TRAIN, "run.name=x", "seed=1", "--replace")
    assert refused.code == 2  # its heartbeat is fresh
    silent_for_long(path)
    ended = alphapo(*TRAIN, "run.name=x", "seed=1", "--replace")
    assert ended.code == 0, ended.err
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and ".claim" not in f.parts}
    code, err = owner.wake()
    assert code == 1, err
    assert "another process has taken over" in err
    for file, content in before.items():
        assert file.read_bytes() == content, file
    assert record(path) == record(alone.path)
    left, right = weights(path), weights(alone.path)
    assert all((left[name] == right[name]).all() for name in right)
    assert not list(path.glob(".model*"))
    assert alphapo("verify", "runs/x").code == 0
    assert alphapo("generate", "runs/x", "generation=transformers", "data.limit=2").code == 0


@pytest.mark.nightly
def test_answers_have_one_writer(stopped, alphapo, tmp_path):
    """Its lock is the file's, which a stopped process keeps: the second line waits for nothing and writes nothing."""
    line = ("generate", "generation=transformers", "data.limit=3", "generation.max_new_tokens=4", "--out", "out")
    alone = alphapo(*line[:-1], "alone")
    assert alone.code == 0, alone.err
    owner = stopped("answers are written", *line)
    refused = alphapo(*line)
    assert refused.code == 2
    assert "another alphapo generate is writing here" in refused.fault
    code, err = owner.wake()
    assert code == 0, err
    outputs = [json.loads((tmp_path / p / "model_outputs.json").read_text()) for p in ("out", "alone")]
    assert outputs[0] == outputs[1]
    assert alphapo(*line).code == 0


@pytest.mark.nightly
def test_an_evaluation_that_wakes_up_writes_the_same(stopped, alphapo, tmp_path):
    case = Case(tmp_path, n=8)
    line = (
        "eval", str(case.outputs), "--reference", str(case.reference), "--judge", "replay", "--annotations",
        str(case.annotations), "--out", "out",
    )  # fmt: skip
    owner = stopped("annotations are written", *line)
    assert alphapo(*line).code == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("annotations.json", "results.json")}
    code, err = owner.wake()
    assert code == 0, err
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


@pytest.mark.nightly
def test_a_report_that_wakes_up_writes_the_same(stopped, alphapo, tmp_path):
    swept = alphapo(
        "sweep", "objective.shape.alpha=0,1", *TINY, *BARE, "trainer.max_steps=1", "launcher.workers=0", "--out", "s"
    )
    assert swept.code == 0, swept.err
    owner = stopped("a page is written", "report", "s")
    assert alphapo("report", "s").code == 0
    before = {file: file.read_bytes() for file in (tmp_path / "s" / "report").glob("*.csv")}
    assert before
    code, err = owner.wake()
    assert code == 0, err
    assert all(file.read_bytes() == content for file, content in before.items())
    assert (tmp_path / "s" / "report.html").read_text().rstrip().endswith("</html>")

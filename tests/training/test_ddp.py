"""Two processes under torchrun (gloo) are one process: the same losses, metrics, probe and parameters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import Ran, environment

pytestmark = pytest.mark.slow

TRAIN_PAIRS = 17  # 4 a step: four full steps and one of a single pair, for which the second process has none
EVAL_PAIRS = 7
# Other rows than pairs, written beside them by `start`.
KINDS = {
    kind: (f"data.path=START/train-{kind}.jsonl", f"data.eval_path=START/eval-{kind}.jsonl")
    for kind in ("lists", "unpaired")
}
TOLERANCE = 1e-5
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


# Each process writes a file when it ends, and another one when its interpreter is taken down.
AT_EXIT = """
import atexit, os, pathlib, sys

class TakenDown:
    def __init__(self, make=os.mkdir, path=f"taken-down-{os.environ.get('RANK')}"):
        self.make, self.path = make, path

    def __del__(self):
        self.make(self.path)

if "RANK" in os.environ:
    atexit.register(pathlib.Path(f"ended-{os.environ['RANK']}").touch)
    sys.taken_down = TakenDown()
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.other_rows(tiny.saved_start(tmp_path_factory.mktemp("start"), TRAIN_PAIRS, EVAL_PAIRS))


def train(run: Callable[..., Any], start: Path, where: Path, *overrides: str) -> Path:
    """Run `alphapo train` in processes of its own and return the run directory."""
    where.mkdir(parents=True)
    # Every step moves the weights: of five steps the first would be one of warmup, at a learning rate of nothing.
    given = ["trainer.warmup_ratio=0", *(word.replace("START", str(start)) for word in overrides)]
    named = {word.partition("=")[0] for word in given}
    common = [word for word in tiny.line_from(start) if word.partition("=")[0] not in named]
    ran = run("train", *common, *given, cwd=where, cache=where / "cache")
    assert ran.code == 0, ran.err[-3000:]
    assert ran.out.count(str(ran.path)) == 1  # one process speaks
    return Path(ran.path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def torchrun(*arguments: str, cwd: Path, cache: Path) -> Any:
    """`alphapo` in two processes."""
    # It finds a free port itself: one found here may be taken until torchrun opens it.
    launcher = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
    env = hooked(cwd, cache)
    line = [*launcher, "-m", "alphapo_cli", *arguments]
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr)


def two_nodes(*arguments: str, cwd: Path, cache: Path) -> Any:
    """`alphapo` in two processes that two torchruns start, as on two nodes."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
    line = [*TORCHRUN, *meeting, "--rdzv-endpoint", f"localhost:{port}", "-m", "alphapo_cli", *arguments]
    env = hooked(cwd, cache)
    both = [
        subprocess.Popen(line, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=300) for one in both]
    # Rank 0, which speaks, is on the node that was there first.
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    return Ran(max(one.returncode for one in both), out, err)


def hooked(cwd: Path, cache: Path) -> dict[str, str]:
    """The environment in which processes of torchrun leave `AT_EXIT`'s files."""
    env = {k: v for k, v in environment(cache).items() if not k.startswith("MASTER_")}
    (cwd / "hooks").mkdir()
    (cwd / "hooks" / "sitecustomize.py").write_text(AT_EXIT)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(cwd / "hooks"), env.get("PYTHONPATH")]))
    return env


@pytest.mark.parametrize(
    ("together", "objective"),
    [
        (two_nodes, ("objective=alphapo",)),
        # reference log-probs are then computed by both processes
        (torchrun, ("objective=alphapo_ratio", "objective.shape.alpha=0.5", "objective.nll=0.1")),
        # the statistics of a step are those of both processes, and so is the number of its tokens
        pytest.param(
            torchrun,
            ("objective=kto_pair", "objective.nll=0.1", "objective.nll_scope=tokens"),
            marks=pytest.mark.nightly,
        ),
        # four answers of each row, and an answer to another prompt beside one that is there alone
        pytest.param(
            torchrun,
            ("objective=infonca", "objective.link.temperature=0.5", *KINDS["lists"]),
            marks=pytest.mark.nightly,
        ),
        pytest.param(torchrun, ("objective=kto", *KINDS["unpaired"]), marks=pytest.mark.nightly),
    ],
    ids=["alphapo on two nodes", "alphapo_ratio", "kto_pair", "infonca", "kto"],
)
def test_two_processes_are_one(
    together: Callable[..., Any], objective: tuple[str, ...], start: Path, tmp_path: Path, forked: Callable[..., Any]
) -> None:
    one = train(
        forked, start, tmp_path / "one", *objective,
        "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
    )  # fmt: skip
    two = train(
        together, start, tmp_path / "two", *objective,
        "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1",
    )  # fmt: skip
    # A thread of gloo that outlives the interpreter may abort the process, so that it is never taken down.
    assert {path.name for path in (tmp_path / "two").glob("*-[01]")} == {"ended-0", "ended-1"}
    mine, theirs = rows(one / "metrics.jsonl"), rows(two / "metrics.jsonl")
    assert [row["step"] for row in mine] == [0, 1, 2, 3, 4, 5]
    assert len({row["train/loss"] for row in mine[1:]}) == 5
    for a, b in zip(mine, theirs, strict=True):
        if a["step"] == 1 and len(objective) > 1:  # the policy is its reference: the sign of a margin is round-off
            for row in (a, b):
                row.pop("train/rewards/accuracies")
        tiny.assert_same_row(a, b, TOLERANCE)
    assert {"displacement/chosen", "kl/reference", "ranking/flipped"} <= mine[2].keys()
    for a, b in zip(rows(one / "probe.jsonl"), rows(two / "probe.jsonl"), strict=True):
        tiny.assert_same_row(a, b, TOLERANCE)
    first, second, origin = (
        load_file(folder / "model.safetensors") for folder in (one / "model", two / "model", start / "model")
    )
    assert first.keys() == second.keys()
    for name, p in first.items():
        assert tiny.relative_error(second[name], p) <= TOLERANCE, name
        moved = tiny.relative_error(p, origin[name])
        assert moved > 100 * TOLERANCE, name  # it has moved much further than the two differ
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, two)]
    assert [s["state"] for s in summaries] == ["complete", "complete"]
    tiny.assert_same_row(summaries[0]["metrics"], summaries[1]["metrics"], TOLERANCE)
    manifest = json.loads((two / "manifest.json").read_text())
    assert '"processes": 2' in json.dumps(manifest)

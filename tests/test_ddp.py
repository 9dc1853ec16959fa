"""Two processes under torchrun (gloo) are one process: the same losses, metrics, probe and parameters."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny

pytestmark = pytest.mark.slow

TRAIN_PAIRS = 17  # 4 a step: four full steps and one of a single pair, for which the second process has none
EVAL_PAIRS = 7
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, training pairs and evaluation pairs."""
    folder = tmp_path_factory.mktemp("start")
    texts = tiny.dialogues(TRAIN_PAIRS + EVAL_PAIRS, seed=2, scale=0.5)
    tokenizer, _ = tiny.encoded(texts)
    tiny.model(vocab=len(tokenizer), spread=0.1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, part in (("train", texts[:TRAIN_PAIRS]), ("eval", texts[TRAIN_PAIRS:])):
        rows = [{"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)} for p in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(start: Path, where: Path, launcher: list[str], *overrides: str) -> Path:
    """Run `alphapo train` and return the run directory."""
    foreign = ("ALPHAPO_", "WANDB_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ALPHAPO_CACHE": str(where / "cache")}
    line = [
        *launcher, "-m", "alphapo_cli", "train", f"model.path={start / 'model'}", "data=jsonl",
        f"data.path={start / 'train.jsonl'}", f"data.eval_path={start / 'eval.jsonl'}", f"probe.pairs={EVAL_PAIRS}",
        "probe.every=2", "probe.batch_size=3", "trainer.learning_rate=1e-3", "trainer.use_cpu=true",
        "trainer.threads=1", "trainer.num_train_epochs=1", "tracking.mode=disabled", "tracking.pictures=false",
        "run.name=it", *overrides,
    ]  # fmt: skip
    where.mkdir(parents=True)
    done = subprocess.run(line, cwd=where, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    path = Path(done.stdout.splitlines()[0])
    assert done.stdout.count(str(path)) == 1  # one process speaks
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def torchrun(processes: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port",
        str(free_port()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [
        ("objective=alphapo",),
        # reference log-probs are then computed by both processes
        ("objective=alphapo_ratio", "objective.shape.alpha=0.5", "objective.nll=0.1"),
    ],
    ids=["alphapo", "alphapo_ratio"],
)
def test_two_processes_are_one(objective: tuple[str, ...], start: Path, tmp_path: Path) -> None:
    one = train(
        start, tmp_path / "one", [sys.executable], *objective,
        "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
    )  # fmt: skip
    two = train(
        start, tmp_path / "two", torchrun(2), *objective,
        "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1",
    )  # fmt: skip
    mine, theirs = rows(one / "metrics.jsonl"), rows(two / "metrics.jsonl")
    assert [row["step"] for row in mine] == [0, 1, 2, 3, 4, 5]
    assert len({row["train/loss"] for row in mine[1:]}) == 5
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if value is None else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)), key
    assert {"displacement/chosen", "kl/reference", "ranking/flipped"} <= mine[2].keys()
    for a, b in zip(rows(one / "probe.jsonl"), rows(two / "probe.jsonl"), strict=True):
        assert b == pytest.approx(a, rel=TOLERANCE, abs=TOLERANCE)
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
    assert summaries[1]["metrics"] == pytest.approx(summaries[0]["metrics"], rel=TOLERANCE, abs=TOLERANCE)
    manifest = json.loads((two / "manifest.json").read_text())
    assert '"processes": 2' in json.dumps(manifest)


def test_metrics_of_every_split_are_the_same(start: Path, tmp_path: Path) -> None:
    """8x1 = 4x2 = 2x4 in one process, ragged last step included, row by row of metrics.jsonl."""
    made = [
        rows(
            train(
                start, tmp_path / f"{micro}", [sys.executable], "objective=alphapo",
                f"trainer.per_device_train_batch_size={micro}", f"trainer.gradient_accumulation_steps={8 // micro}",
            ) / "metrics.jsonl"
        )
        for micro in (8, 4, 2)
    ]  # fmt: skip
    assert [row["step"] for row in made[0]] == [0, 1, 2, 3]
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert b[key] == (value if value is None else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)), key


def test_a_failing_process_ends_the_run(start: Path, tmp_path: Path) -> None:
    """Wrong input under torchrun is one line from one process, and no directory is left behind as complete."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ALPHAPO_CACHE": str(tmp_path / "cache")}
    line = [*torchrun(2), "-m", "alphapo_cli", "train", f"data.path={start / 'nothing.jsonl'}", "data=jsonl",
            f"model.path={start / 'model'}", "trainer.use_cpu=true", f"run.name=x{random.randrange(1000)}"]  # fmt: skip
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "nothing.jsonl" in done.stderr
    assert not list(tmp_path.glob("runs/*/summary.json"))

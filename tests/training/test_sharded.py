"""Sharded over processes (gloo on the CPU), training is that of one process: losses, metrics, probe, weights, files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import Ran, environment, write_rows
from tests.training.sharded_worker import Case

# float32 rounds to 6e-8; a sum over the tokens and layers of a step multiplies that by some tens, five steps by five.
TOLERANCE = 1e-5
MOVES = {"objective.reference_every": 2, "objective.reference_mix": 0.5}

OBJECTIVES = (
    Case("alphapo"),
    Case("dpo", "dpo"),
    Case("tdpo", "tdpo"),
    Case("tr_dpo", "tr_dpo", overrides=[f"{key}={value}" for key, value in MOVES.items()]),
    Case("kto", "kto", rows="unpaired"),
    Case("infonca", "infonca", rows="lists"),
    Case("tgdpo", "tgdpo"),
)
FAMILIES = ("llama", "llama tied", "gemma2, soft-capped", "qwen3")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"layout": "padded"},
    "tokens_per_batch": {"trainer": {"tokens_per_batch": 120}},
    "accumulation": {"accumulation": 2},
    "checkpointing": {"trainer": {"gradient_checkpointing": True}},
    "lora": {"lora": 4},
    "small chunks": {"chunk_bytes": 4096},
    "kept whole": {"sharding": {"reshard_after_forward": False}},
}
# Every objective, architecture and setting once.
CHOSEN = [
    OBJECTIVES[0],
    dataclasses.replace(OBJECTIVES[1], name="dpo tied", family="llama tied", chunk_bytes=4096),
    dataclasses.replace(OBJECTIVES[2], name="tdpo gemma2", family="gemma2, soft-capped", chunk_bytes=4096),
    dataclasses.replace(OBJECTIVES[3], name="tr_dpo checkpointing", trainer={"gradient_checkpointing": True}),
    dataclasses.replace(OBJECTIVES[4], name="kto qwen3 padded", family="qwen3", layout="padded"),
    dataclasses.replace(OBJECTIVES[5], name="infonca accumulation", accumulation=2),
    dataclasses.replace(OBJECTIVES[6], name="tgdpo tokens_per_batch", trainer={"tokens_per_batch": 120}),
    dataclasses.replace(OBJECTIVES[1], name="dpo lora", lora=4),
    dataclasses.replace(OBJECTIVES[2], name="tdpo moving", overrides=OBJECTIVES[3].overrides, chunk_bytes=4096),
    dataclasses.replace(OBJECTIVES[0], name="alphapo kept whole", sharding={"reshard_after_forward": False}),
]
WHOLE = [
    dataclasses.replace(one, name=f"{one.objective} {family} {name}", family=family, **more)
    for one in OBJECTIVES
    for family in FAMILIES
    for name, more in SETTINGS.items()
]


def together(cases: list[Case], world: int, folder: Path) -> dict[str, Any]:
    """What each case comes to in `world` processes, sharded; 0: in one, whole."""
    listed, out = folder / f"cases-{world}.json", folder / f"out-{world}.pt"
    listed.write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    run_script("sharded_worker.py", str(listed), str(out), folder=folder, world=world, seconds=60 * len(cases) + 600)
    return torch.load(out, weights_only=False)


def assert_same(ours: dict[str, Any], whole: dict[str, Any]) -> None:
    assert [step for step, _ in ours["rows"]] == [1, 2, 3, 4, 5]
    for (_, a), (_, b) in zip(ours["rows"], whole["rows"], strict=True):
        tiny.assert_same_row(a, b, TOLERANCE)
    for kind in ("weights", "moving"):
        assert (ours[kind] is None) == (whole[kind] is None)
        for name, p in (whole[kind] or {}).items():
            assert tiny.relative_error(ours[kind][name], p) <= TOLERANCE, name
    for name, values in whole["probe"].items():
        np.testing.assert_allclose(ours["probe"][name], values, rtol=TOLERANCE, atol=TOLERANCE)
    for a, b in zip([*ours["reference"], *ours["guide"]], [*whole["reference"], *whole["guide"]], strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    assert ours["hashes"][0] == whole["hashes"][0]
    assert ours["wrapped"] == "PolicyModel"  # neither DDP nor anything else around it


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_sharded_processes_are_one(tmp_path: Path) -> None:
    two, one = together(CHOSEN, 2, tmp_path), together(CHOSEN, 0, tmp_path)
    for case in CHOSEN:
        assert_same(two[case.name], one[case.name])
    # Parameters, gradients and moments: each process has half of them, up to rows that do not divide.
    assert two["alphapo"]["bytes"] <= 0.51 * one["alphapo"]["bytes"]


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("world", [2, 4])
def test_the_whole_matrix(world: int, tmp_path: Path) -> None:
    cases = [case for case in WHOLE if world == 2 or case.accumulation == 1]
    many, one = together(cases, world, tmp_path), together(cases, 0, tmp_path)
    for case in cases:
        assert_same(many[case.name], one[case.name])


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_replicas_of_a_sharded_model(tmp_path: Path) -> None:
    cases = [dataclasses.replace(one, sharding={"shard_size": 2}) for one in OBJECTIVES]
    four, one = together(cases, 4, tmp_path), together(cases, 0, tmp_path)
    for case in cases:
        assert_same(four[case.name], one[case.name])


def run_script(
    name: str, *arguments: str, folder: Path, world: int = 2, fails: bool = False, seconds: float = 600
) -> None:
    """A script of this directory in `world` processes; 0: in one, without torchrun."""
    root = Path(__file__).parents[2]
    env = {k: v for k, v in environment(folder / "cache").items() if not k.startswith("MASTER_")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world else []
    done = subprocess.run(
        [sys.executable, *launcher, str(Path(__file__).with_name(name)), *arguments], cwd=root,
        env={**env, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr[-4000:]


def torchrun(world: int, *arguments: str, cwd: Path, cache: Path) -> Ran:
    """`alphapo` in `world` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    env = {k: v for k, v in environment(cache).items() if not k.startswith("MASTER_")}
    line = [*launcher, "-m", "alphapo_cli", *arguments]
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    return Ran(done.returncode, done.stdout, done.stderr)


def line(start: Path, *overrides: str) -> list[str]:
    return [
        "train", *tiny.line_from(start), "trainer.warmup_ratio=0", "trainer.per_device_train_batch_size=2",
        "trainer.gradient_accumulation_steps=1", "probe.samples=2", "probe.max_new_tokens=6", *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved_start(tmp_path_factory.mktemp("start"), 17, 5)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_sharded_run_leaves_what_a_run_leaves(start: Path, tmp_path: Path, forked: Callable[..., Any]) -> None:
    """The command line from start to end: files, samples, the model, which plain transformers reads."""
    import transformers

    # Five pairs in batches of two: one process runs a batch again that the other one measures.
    observed = ("objective=dpo", "probe.batch_size=2", "probe.scores=true", "probe.first_position=true")
    ran = torchrun(2, *line(start, "sharding.mode=fsdp", *observed), cwd=tmp_path, cache=tmp_path / "cache")
    assert ran.code == 0, ran.err[-3000:]
    more = ("trainer.gradient_accumulation_steps=2", *observed)
    whole = forked(*line(start, *more), cwd=tmp_path, cache=tmp_path / "other")
    assert whole.code == 0, whole.err[-3000:]
    for file in ("metrics.jsonl", "probe.jsonl"):
        ours, theirs = ([json.loads(row) for row in (run.path / file).read_text().splitlines()] for run in (ran, whole))
        for a, b in zip(ours, theirs, strict=True):
            for row in (a, b) if a["step"] in (0, 1) else ():  # the policy is its reference: a sign is round-off
                for name in [name for name in row if "accurac" in name or name == "ranking/flipped"]:
                    row.pop(name)
            tiny.assert_same_row(a, b, TOLERANCE)
    for file in sorted((whole.path / "samples").iterdir()):
        assert [row["output"] for row in json.loads((ran.path / "samples" / file.name).read_text())] == [
            row["output"] for row in json.loads(file.read_text())
        ]
    assert {f.name for f in (ran.path / "model").iterdir()} == {f.name for f in (whole.path / "model").iterdir()}
    saved, expected = (load_file(run.path / "model" / "model.safetensors") for run in (ran, whole))
    assert saved.keys() == expected.keys()
    for name, p in expected.items():
        assert tiny.relative_error(saved[name], p) <= TOLERANCE, name
    read = transformers.AutoModelForCausalLM.from_pretrained(ran.path / "model")
    assert all(torch.equal(p, saved[name]) for name, p in read.named_parameters())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["fsdp", pytest.param("none", marks=pytest.mark.nightly)])
def test_two_processes_answer_before_and_after(
    mode: str, start: Path, tmp_path: Path, forked: Callable[..., Any]
) -> None:
    """Side by side in the terminal and on the page, as in one process, whether they share the model or each have it."""
    words = [word for word in line(start, "trainer.max_steps=1") if not word.startswith("probe.samples=")]
    ran = torchrun(2, *words, f"sharding.mode={mode}", cwd=tmp_path, cache=tmp_path / "cache")
    assert ran.code == 0, ran.err[-3000:]
    whole = forked(*words, "trainer.gradient_accumulation_steps=2", cwd=tmp_path, cache=tmp_path / "other")
    assert whole.code == 0, whole.err[-3000:]
    for file in ("step-0.json", "step-1.json"):
        ours, theirs = (json.loads((run.path / "samples" / file).read_text()) for run in (ran, whole))
        assert [row["output"] for row in ours] == [row["output"] for row in theirs]
    assert ran.err.count("answers before and after, 3 of ") == 1
    assert ("all shards are gathered for every token, probe.samples=0 does without" in ran.err) == (mode == "fsdp")
    assert "What the models say" in (ran.path / "report.html").read_text()


@pytest.mark.nightly
def test_pairs_in_stages_are_sharded_in_their_order(start: Path, tmp_path: Path, forked: Callable[..., Any]) -> None:
    rows = [json.loads(row) for row in (start / "train.jsonl").read_text().splitlines()]
    staged = write_rows(tmp_path / "staged.jsonl", [{**row, "stage": i % 2} for i, row in enumerate(rows)])
    words = line(start, "trainer.order=stages", "trainer.max_steps=2", "probe.samples=0")
    words = [f"data.path={staged}" if word.startswith("data.path=") else word for word in words]
    whole, sharded = (
        forked(*words, *more, cwd=tmp_path, cache=tmp_path / "cache")
        for more in (("run.name=whole",), ("run.name=sharded", "sharding.mode=fsdp"))
    )
    assert (whole.code, sharded.code) == (0, 0), sharded.err[-3000:]
    ours, theirs = (json.loads((run.path / "summary.json").read_text())["metrics"] for run in (sharded, whole))
    tiny.assert_same_row(ours, theirs, TOLERANCE)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_pairs_are_chosen_by_a_sharded_start_model(start: Path, tmp_path: Path, forked: Callable[..., Any]) -> None:
    chosen = ("data.select.by=ches_normalised", "data.select.keep=lowest", "data.select.share=0.5", "probe.samples=0")
    words = (*chosen, "trainer.max_steps=1", "trainer.num_train_epochs=1")
    ran = torchrun(2, *line(start, *words, "sharding.mode=fsdp"), cwd=tmp_path, cache=tmp_path / "cache")
    assert ran.code == 0, ran.err[-3000:]
    more = ("trainer.gradient_accumulation_steps=2",)
    whole = forked(*line(start, *words, *more), cwd=tmp_path, cache=tmp_path / "other")
    assert whole.code == 0, whole.err[-3000:]
    ours, theirs = (
        [json.loads(row) for row in (run.path / "metrics.jsonl").read_text().splitlines()] for run in (ran, whole)
    )
    for a, b in zip(ours, theirs, strict=True):
        tiny.assert_same_row(a, b, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        pytest.param("weights", "weight lm_head.weight is nan at step 7", marks=pytest.mark.nightly),
        ("loss", "the loss is nan at step 1"),
        pytest.param("alone", "the second process has no more room", marks=pytest.mark.nightly),
    ],
)
def test_what_goes_wrong_in_one_process_ends_both_with_its_message(kind: str, words: str, tmp_path: Path) -> None:
    run_script("sharded_faults.py", kind, str(tmp_path), folder=tmp_path, fails=True)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert all(words in text for text in said), said


# In rank 1 alone a function of the product fails as on a disk without room.
FAULT = """
import importlib.abc, importlib.util, os, sys

module, name = os.environ["FAULT"].split(":")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, wanted, path, target=None):
        if wanted != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(wanted)
        load = spec.loader.exec_module

        def exec_module(made):
            load(made)
            def fail(*args, **named):
                raise OSError(28, "No space left on device")
            setattr(made, name, fail)

        spec.loader.exec_module = exec_module
        return spec

if os.environ.get("RANK") == "1":
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_where_one_process_cannot_save_the_model_all_end(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one waits for it: it must not try to write together what it could not."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hooks"), str(Path(__file__).parents[2])]))
    monkeypatch.setenv("FAULT", "alphapo_cli.modeling.saving_shards:stored")
    words = line(start, "sharding.mode=fsdp", "trainer.max_steps=2", "probe.samples=0", "run.name=one")
    began = time.monotonic()
    ran = torchrun(2, *words, cwd=tmp_path, cache=tmp_path / "cache")
    assert ran.code != 0
    assert time.monotonic() - began < 300  # starting and ending; torch's own limit for an operation is half an hour
    assert "No space left on device" in ran.err
    # torchrun may end the first process while it prints this; what it records comes before.
    summary = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())
    assert "process 1: No space left on device" in summary["reason"]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_one_of_the_processes_that_trained_generates_and_evaluates(start: Path, tmp_path: Path) -> None:
    words = line(start, "probe.samples=0", "trainer.max_steps=2")
    later = ("generation=transformers", "generation.max_new_tokens=4", "prompts=glassbox", "prompts.limit=2")
    ran = torchrun(
        2, "run", *words[1:], "sharding.mode=fsdp", *later, "judge=glassbox", cwd=tmp_path, cache=tmp_path / "cache"
    )
    assert ran.code == 0, ran.err[-3000:]
    assert len(re.findall("^verdict: ", ran.err, re.MULTILINE)) == 1
    assert (ran.path / "outcome.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [(1,), pytest.param((1, 4), marks=pytest.mark.nightly)], ids=str)
def test_shards_are_read_by_any_number_of_processes(worlds: tuple[int, ...], tmp_path: Path) -> None:
    """A checkpoint after three of five steps: as many processes, and other numbers, end where nothing had stopped."""
    run_script("sharded_checkpoints.py", "write", str(tmp_path), folder=tmp_path)
    two = torch.load(tmp_path / "ends-2.pt", weights_only=False)
    others = []
    for world in worlds:
        run_script("sharded_checkpoints.py", "read", str(tmp_path), folder=tmp_path, world=world if world > 1 else 0)
        others.append(torch.load(tmp_path / f"ends-{world}.pt", weights_only=False))
    expected = two["undisturbed"]
    assert two["resumed"].keys() == expected.keys()
    assert any(name.startswith("reference ") for name in expected)
    for name, p in expected.items():
        assert torch.equal(two["resumed"][name], p), name
        assert max(tiny.relative_error(other["resumed"][name], p) for other in others) <= 1e-6, name
    assert two["resumed rows"] == two["undisturbed rows"][1:]
    for other in others:
        for (_, a), (_, b) in zip(other["resumed rows"], two["resumed rows"], strict=True):
            tiny.assert_same_row(a, b, 1e-6)


@pytest.mark.nightly
def test_in_bfloat16_only_gradients_are_rounded_once_more(tmp_path: Path) -> None:
    """From weights of 8 bits the log-probs are those of one process under autocast. No copy of a weight is kept."""
    run_script("sharded_bf16.py", str(tmp_path), folder=tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"bf16-{rank}.json").read_text())
        assert found["logps"] <= 1e-6
        # Each gradient is rounded to 8 bits, at most 2^-8 of itself, and averaged over two processes.
        assert max(found["gradients"].values()) <= 2**-7
        assert found["copies"] == []
        assert found["dtypes"] == ["torch.float32torch.float32"]


def undisturbed(where: Path) -> dict[str, torch.Tensor]:
    return load_file(where / "model" / "model.safetensors")


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_killed_process_ends_the_others_and_the_same_line_ends_bitwise(start: Path, tmp_path: Path) -> None:
    more = (
        "sharding.mode=fsdp",
        "trainer.num_train_epochs=12",
        "trainer.save_steps=3",
        "probe.every=30",
        "probe.samples=0",
    )
    words = line(start, *more, "objective=tr_dpo", "objective.reference_every=2", "run.name=one")
    whole = torchrun(2, *words, "run.dir=whole", cwd=tmp_path, cache=tmp_path / "cache")
    assert whole.code == 0, whole.err[-3000:]
    env = {k: v for k, v in environment(tmp_path / "cache").items() if not k.startswith("MASTER_")}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    killed = tmp_path / "killed" / "one"
    with subprocess.Popen(
        [*launcher, "-m", "alphapo_cli", *words, "run.dir=killed"], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        deadline = time.monotonic() + 600
        while not list(killed.glob("checkpoints/step-*/complete")):
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.05)
        (second,) = (child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == "1")
        second.kill()
        job.communicate(timeout=60)
    assert job.returncode != 0
    assert not (killed / "model").exists()
    for world in (1, 4):
        shutil.copytree(tmp_path / "killed", tmp_path / f"world-{world}")
    again = torchrun(2, *words, "run.dir=killed", cwd=tmp_path, cache=tmp_path / "cache")
    assert again.code == 0, again.err[-3000:]
    assert "continues at step" in again.err
    expected = undisturbed(whole.path)
    for name, p in undisturbed(killed).items():
        assert torch.equal(p, expected[name]), name
    assert (killed / "metrics.jsonl").read_text() == (whole.path / "metrics.jsonl").read_text()
    for world in (1, 4):
        ran = torchrun(world, *words, f"run.dir=world-{world}", cwd=tmp_path, cache=tmp_path / "cache")
        assert ran.code == 0, ran.err[-3000:]
        assert f"begun with 2 process(es), goes on with {world}" in ran.err
        for name, p in undisturbed(ran.path).items():
            assert tiny.relative_error(p, expected[name]) <= 1e-6, name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sharding.shard_size=2",), "nothing is sharded while sharding.mode=none"),
        (("sharding.mode=fsdp", "trainer.optim=adafactor"), "trainer.optim=adafactor is not known to work on shards"),
        (("sharding.mode=fsdp", "trainer.optim=adamw_bnb_8bit"), "is not known to work on shards"),
        (("sharding.mode=fsdp", "sharding.cpu_offload=true"), "without CUDA"),
        (("sharding.mode=fsdp", "sharding.shard_size=2"), "does not divide the 1 process"),
        (("sharding.mode=fsdp", "model.lora.r=2", "model.merge=true"), "model.merge=true"),
        (("sharding.mode=ddp",), "no such choice"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    overrides: tuple[str, ...], words: str, alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # is there, and nothing that could be loaded
    (tmp_path / "model" / "model.safetensors").write_bytes(b"-")
    (tmp_path / "none.jsonl").touch()
    ran = alphapo(
        "train", "trainer.use_cpu=true", "model.path=./model", "data=jsonl", "data.path=none.jsonl", *overrides
    )
    assert ran.code == 2
    assert words in ran.fault
    assert not (tmp_path / "runs").exists()

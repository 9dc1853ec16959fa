"""Training on a CUDA device: layouts, precision, checkpointing and a mesh of one agree; memory is what a plan says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alphapo_cli.config.schema import ScratchConfig
from tests import tiny
from tests.stages.test_resume import assert_same, killed_at

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
Rows = list[dict[str, Any]]
BATCH = ("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1")  # 21 pairs: three steps
DEVICE = "trainer.use_cpu=false"
LINES = {
    "plain": (),
    "recomputed": ("trainer.gradient_checkpointing=true",),
    "mesh of one": ("sharding.mode=fsdp",),
    "recomputed on a mesh of one": ("sharding.mode=fsdp", "trainer.gradient_checkpointing=true"),
    "DPO": ("objective=dpo",),
    "adapters": ("objective=dpo", "model.lora.r=4"),
    "micro-batches by tokens": ("trainer.tokens_per_batch=150",),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved_start(tmp_path_factory.mktemp("start"), 21, 7)


@pytest.mark.parametrize("line", LINES)
def test_a_run_on_the_device_is_the_run_on_the_processor(
    line: str, start: Path, alphapo: Callable[..., Any], rows: Callable[[Path], Rows]
) -> None:
    """metrics.jsonl of 21 pairs in float32: packed and padded on the device, and packed on the processor."""
    made = []
    for split in (("layout=packed", DEVICE), ("layout=padded", DEVICE), ("layout=packed", "trainer.use_cpu=true")):
        ran = alphapo("train", *tiny.line_from(start), *BATCH, *LINES[line], *split)
        assert ran.code == 0, ran.err
        made.append(rows(ran.path / "metrics.jsonl"))
    assert made[0][-1]["displacement/chosen"] != 0
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            # Sums in other orders: 2^-24 of a log-prob of some hundred, and what three steps of Adam make of it.
            tiny.assert_same_row(a, b, 1e-4)


@pytest.mark.parametrize("line", ["plain", "recomputed", "mesh of one", "adapters"])
def test_layouts_agree_in_bfloat16(
    line: str, start: Path, alphapo: Callable[..., Any], rows: Callable[[Path], Rows]
) -> None:
    made = []
    for layout in ("packed", "padded"):
        ran = alphapo(
            "train", *tiny.line_from(start), *BATCH, *LINES[line], f"layout={layout}", DEVICE, "trainer.bf16=true"
        )
        assert ran.code == 0, ran.err
        made.append(rows(ran.path / "metrics.jsonl"))
    keys = [f"{when}logps/{side}" for when in ("", "train/") for side in ("chosen", "rejected")]
    compared = 0
    for a, b in zip(*made, strict=True):
        for key in (key for key in keys if key in a):
            # A log-prob of a token is rounded to 1/256 of itself where it was computed, in another order each.
            assert abs(a[key] - b[key]) <= abs(b[key]) / 64, (key, a[key], b[key])
            compared += 1
    assert compared >= 2 * (1 + 3)  # a reading of the probe and three steps, of both sides


def test_a_killed_run_ends_as_an_undisturbed_one(start: Path, alphapo: Callable[..., Any]) -> None:
    common = [*tiny.line_from(start), *BATCH, DEVICE, "trainer.bf16=true", "trainer.save_steps=1"]
    whole = alphapo("train", *common, "run.name=whole")
    assert whole.code == 0, whole.err
    with killed_at(2):
        alphapo("train", *common, "run.name=broken")
    ended = alphapo("train", *common, "run.name=broken")
    assert ended.code == 0, ended.err
    assert_same(whole.path, ended.path)


@pytest.mark.parametrize(
    "line",
    [(), ("objective=dpo",), ("model.lora.r=16",), ("trainer.gradient_checkpointing=true",), ("trainer.bf16=true",)],
    ids=["full", "DPO", "LoRA", "recomputed", "bfloat16"],
)
def test_memory_is_what_the_plan_says(line: tuple[str, ...], tmp_path: Path, cli: Callable[..., Any]) -> None:
    """A random Llama of 111 million parameters; within 15 % of the allocator's highest count, in processes of their own."""
    from alphapo_cli.modeling.loading import from_scratch

    texts = tiny.dialogues(64, seed=2, scale=1.0)
    pairs = [{"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)} for p in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = [text for p in texts if p.verbatim for text in (p.verbatim.prompt, p.verbatim.chosen, p.verbatim.rejected)]
    shape = ScratchConfig(hidden_size=1024, num_hidden_layers=8, num_attention_heads=16)
    lm, tokenizer = from_scratch(shape, words, seed=0)
    lm.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    common = [
        f"model.path={tmp_path / 'model'}", "data=jsonl", f"data.path={tmp_path / 'pairs.jsonl'}", "probe.pairs=2",
        "probe.samples=0", "trainer.max_steps=3", "trainer.per_device_train_batch_size=4", "tracking.mode=disabled",
        "trainer.gradient_accumulation_steps=2", DEVICE, *line,
    ]  # fmt: skip
    planned = cli("plan", "train", *common, "--json", str(tmp_path / "plan.json"))
    assert planned.code == 0, planned.err
    trained = cli("train", *common)
    assert trained.code == 0, trained.err
    predicted = json.loads((tmp_path / "plan.json").read_text())["memory"]["peak"] / 2**20
    measured = json.loads((trained.path / "summary.json").read_text())["cost"]["peak_gpu_mib"]
    assert abs(predicted / measured - 1) <= 0.15, (predicted, measured)

"""What the choice of a layout and of micro-batches may change in a run: nothing but round-off; and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.training.data_order import DataOrder
from tests import tiny

Rows = list[dict[str, Any]]
# Each line's runs differ by layout and micro-batches only.
LINES = {
    "alphapo": (),
    "dpo": ("objective=dpo",),
    "adapters": ("objective=dpo", "model.lora.r=4"),
    "recomputed": ("trainer.gradient_checkpointing=true", "trainer.logit_chunk_mb=0.01"),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved_start(tmp_path_factory.mktemp("start"), 21, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [pytest.param(name, marks=[pytest.mark.slow] if name in ("dpo", "recomputed") else []) for name in LINES]
)
def test_layouts_and_micro_batches_show_only_in_the_last_digits(
    line: str, start: Path, alphapo: Callable[..., Any], rows: Callable[[Path], Rows]
) -> None:
    """metrics.jsonl of whole runs, 21 pairs in steps of 8, 8 and 5, in float32."""
    common = (*tiny.line_from(start), *LINES[line])
    whole = ("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1")
    splits: list[tuple[str, ...]] = [
        ("layout=padded", *whole),
        ("layout=packed", *whole),
        ("layout=packed", *whole, "trainer.tokens_per_batch=150"),
        ("layout=padded", "trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"),
    ]
    made = []
    for split in splits if line == "alphapo" else splits[:2]:
        ran = alphapo("train", *common, *split)
        assert ran.code == 0, ran.err
        made.append(rows(ran.path / "metrics.jsonl"))
    assert len(made[0]) == 4
    assert made[0][-1]["displacement/chosen"] != 0
    for other in made[1:]:
        assert other != made[0]  # they did compute in another way
        for a, b in zip(made[0], other, strict=True):
            tiny.assert_same_row(a, b, 1e-5)


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("opt", (), "layout=packed cannot run architecture 'opt'"),
        ("llama", ("model.attention=eager",), "model.attention=eager: not with layout=packed; add layout=padded"),
        ("llama", ("model.attention=flex",), "model.attention=flex: needs a CUDA device"),
        ("llama", ("model.attention=flex", "layout=padded"), "model.attention=flex: not with layout=padded"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_written(
    family: str, overrides: tuple[str, ...], reason: str, tmp_path: Path, start: Path, alphapo: Callable[..., Any]
) -> None:
    if family != "llama":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(start / "model")
        tokenizer.save_pretrained(tmp_path / "other")
        tiny.model(family, vocab=len(tokenizer)).save_pretrained(tmp_path / "other")
        overrides = (*overrides, f"model.path={tmp_path / 'other'}")
    ran = alphapo("train", *tiny.line_from(start), *overrides)
    assert ran.code == 2
    assert reason in ran.err
    assert "layout=padded" in ran.err or "auto" in ran.err
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("summary.json"))


def test_the_padded_layout_runs_what_packed_refuses(tmp_path: Path, start: Path, alphapo: Callable[..., Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start / "model")
    tokenizer.save_pretrained(tmp_path / "other")
    tiny.model("opt", vocab=len(tokenizer)).save_pretrained(tmp_path / "other")
    ran = alphapo("train", *tiny.line_from(start), f"model.path={tmp_path / 'other'}", "layout=padded")
    assert ran.code == 0, ran.err


def budgeted(pairs: int, micro: int, accumulation: int, world: int, tokens: int | None) -> DataOrder:
    cfg = TrainerConfig(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, tokens_per_batch=tokens
    )
    return DataOrder.of(cfg, pairs, world, seed=0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 200)),
    st.booleans(),
)
def test_a_budget_of_tokens_deals_the_same_steps(
    sizes: list[int], micro: int, accumulation: int, world: int, tokens: int | None, as_widest: bool
) -> None:
    lengths = np.array(sizes)
    plain = budgeted(len(sizes), micro, accumulation, world, None)
    s = budgeted(len(sizes), micro, accumulation, world, tokens).sized(lengths, as_widest)
    assert s.total_steps == plain.total_steps
    for step in range(s.total_steps):
        dealt = [s.micro_batches(step, rank) for rank in range(world)]
        assert len({len(batches) for batches in dealt}) == 1
        found = []
        for indices, weights in itertools.chain.from_iterable(dealt):
            real = [int(i) for i, w in zip(indices, weights, strict=True) if w == 1.0]
            found += real
            taken = lengths[real].max() * len(real) if as_widest and real else lengths[real].sum()
            assert len(indices) >= 1
            if tokens is None:
                assert len(real) <= micro
            else:
                assert taken <= tokens or len(real) == 1
        assert sorted(found) == sorted(plain.pairs(step).tolist())


def test_a_budget_is_used() -> None:
    # 12 pairs of 10 positions in one step: at most 45 at a time is 4 pairs, three times; 2 x 2 pairs would be three too
    s = budgeted(12, 2, 6, 1, 45).sized(np.full(12, 10), as_widest=False)
    assert [len(indices) for indices, _ in s.micro_batches(0, 0)] == [4, 4, 4]
    # padded: pairs of like size together, so that rows of 40 do not widen rows of 5
    mixed = budgeted(6, 6, 1, 1, 80).sized(np.array([40, 5, 5, 40, 5, 5]), as_widest=True)
    assert [sorted(indices.tolist()) for indices, _ in mixed.micro_batches(0, 0)] == [[0, 3], [1, 2, 4, 5]]


def test_positions_bound_what_a_layout_takes() -> None:
    pairs = tiny.token_pairs(20, seed=1)
    for layout in LAYOUTS.values():
        for sides in (1, 2):
            sizes = layout.positions(pairs, sides)
            for i in range(20):
                batch = layout.collate([pairs[i]], pad_id=0, sides=sides)
                assert batch.input_ids.numel() <= sizes[i] <= batch.input_ids.numel() + 8

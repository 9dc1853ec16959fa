"""K answers to one prompt: packed is padded is the model's own forward of single sequences, in float64.

Nothing that a question of attention could hide behind: answers that begin alike, that begin one another, of one token,
and absent ones. Tolerances as in test_packed.py.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alphapo_cli.data.token_pairs import Ragged, TokenPair, TokenPairs
from alphapo_cli.modeling.layout import packed, padded
from alphapo_cli.modeling.layout.patching import prepare
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.policy import PolicyModel, TokenValues, attach_tokens
from tests import tiny

SOFT = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "attn_implementation": "eager"}
MODELS: dict[str, Any] = {
    "llama": tiny.model("llama").double(),
    "mistral, window 8": tiny.model("mistral, window 8").double(),
    "gemma2": tiny.model("gemma2, soft-capped", **SOFT).double(),
}


def row(prompt: list[int], answers: list[list[int]], index: int = 0) -> TokenPair:
    first, second, *others = (np.asarray(x, np.int32) for x in answers)
    return TokenPair(np.asarray(prompt, np.int32), first, second, {}, index, tuple(others))


def ids(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(tiny.FIRST, 12), min_size=low, max_size=high)


@st.composite
def lists(draw: st.DrawFn) -> list[TokenPair]:
    """One to three rows of K = 2 to 5 answers, which share a beginning."""
    sides = draw(st.integers(2, 5))
    rows = []
    for i in range(draw(st.integers(1, 3))):
        opening = draw(ids(0, 2))
        own = draw(st.lists(st.one_of(ids(0, 4), ids(8, 12)), min_size=sides, max_size=sides))
        rows.append(row(draw(ids(1, 10)), [[*opening, *x] or [tiny.EOS] for x in own], i))
    return rows


CORNERS = [
    row([5, 6], [[7, 8, 9], [7, 8], [7, 8, 9, 10, 11], [7]], 0),  # each begins another
    row([tiny.BOS], [[5], [6], [7], [8]], 1),
    row([5, 6, 7], [list(range(20, 45)), [9], [9, 10], [9, 11]], 2),
    row([5, 6, 7], [[9], list(range(20, 45)), list(range(20, 44)), [9, 11]], 3),
]
# Unpaired rows, and ones with an answer that belongs to another row as their third.
ABSENT = [row([5, 6], [[7, 8, 9], []], 0), row([5], [[], [6, 7]], 1), row([5, 6, 9], [[], [6]], 2)]
THIRD = [row([5, 6], [[7, 8, 9], [], [7, 9]], 0), row([5], [[], [6, 7], list(range(20, 40))], 1)]


def expected(lm: Any, rows: list[TokenPair], sides: int) -> torch.Tensor:
    """Log-probs of every completion token, side by side and row by row, from logits of single sequences."""
    found = []
    for side in range(sides):
        for pair in rows:
            answer = pair.answers[side].tolist()
            if answer:
                whole = torch.tensor([*pair.prompt.tolist(), *answer])
                table = lm(input_ids=whole.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
                first = len(pair.prompt)
                found.append(table[torch.arange(first - 1, len(whole) - 1), whole[first:]])
    return torch.cat(found)


def gradients(lm: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=5)
@given(rows=lists())
@example(rows=CORNERS)
@example(rows=ABSENT)
@example(rows=THIRD)
def test_packed_is_padded_is_the_model_itself(name: str, rows: list[TokenPair]) -> None:
    made = []
    sides = len(rows[0].answers)
    with tiny.Wide():
        plain = copy.deepcopy(MODELS[name])
        logps = expected(plain, rows, sides)
        weights = torch.linspace(-1, 1, len(logps), dtype=torch.float64) + 0.01
        (logps * weights).sum().backward()
        for layout in (packed, padded):
            lm = copy.deepcopy(MODELS[name])
            batch = layout.collate(rows, pad_id=tiny.PAD, sides=sides)
            assert (batch.num_sides, batch.num_pairs) == (sides, len(rows))
            ours = PolicyModel(lm)(batch).logps
            (ours * weights).sum().backward()
            made.append(batch)
            assert torch.allclose(ours, logps, rtol=0, atol=1e-10)
            truth = gradients(plain)
            assert torch.allclose(gradients(lm), truth, rtol=0, atol=1e-10 * max(1.0, truth.abs().max().item()))
    for field in ("index", "weight"):
        assert torch.equal(getattr(made[0], field), getattr(made[1], field))
    for field in ("ids", "answer"):
        assert torch.equal(getattr(made[0].tokens, field), getattr(made[1].tokens, field))


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_only_the_first_sides_are_laid_out(sides: int) -> None:
    cut = [row(p.prompt.tolist(), [a.tolist() for a in p.answers[: max(2, sides)]], p.index) for p in CORNERS]
    for layout in (packed, padded):
        ours, whole = (layout.collate(x, pad_id=tiny.PAD, sides=sides) for x in (CORNERS, cut))
        assert torch.equal(ours.input_ids, whole.input_ids)
        assert torch.equal(ours.predict, whole.predict)


@settings(max_examples=40)
@given(lists())
def test_no_answer_sees_another(rows: list[TokenPair]) -> None:
    """What a position may attend to, read in order of positions, is its own row's text up to there."""
    batch = packed.collate(rows, pad_id=tiny.PAD, sides=len(rows[0].answers))
    assert batch.packing is not None
    pair, part, position = batch.packing.coordinates()
    for kept, target, answer in zip(batch.predict, batch.tokens.ids, batch.tokens.answer, strict=True):
        q = batch.packing.rows[kept]
        seen = (pair == pair[q]) & ((part == 0) | (part == part[q])) & (position <= position[q])
        read = batch.input_ids[0][seen][position[seen].argsort()].tolist()
        source = rows[int(answer) % len(rows)]
        whole = [*source.prompt.tolist(), *source.answers[int(answer) // len(rows)].tolist()]
        assert [*read, int(target)] == whole[: len(read) + 1]


def test_the_prompt_is_encoded_once_for_all_answers() -> None:
    batch = packed.collate([row(list(range(10, 30)), [[5, 6, 7], [5, 8], [5, 9, 3, 4]])], pad_id=tiny.PAD, sides=3)
    # 20 and the common 5; then what each has of its own, the longest first, without its last token
    assert batch.input_ids.tolist() == [[*range(10, 30), 5, 9, 3, 6]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_the_same() -> None:
    lm = MODELS["gemma2"]
    flex = copy.deepcopy(lm)
    prepare(flex, "flex")
    with torch.no_grad(), tiny.Wide():
        batch = packed.collate(CORNERS, pad_id=tiny.PAD, sides=4)
        assert torch.allclose(PolicyModel(flex)(batch).logps, expected(lm, CORNERS, 4), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [CORNERS, ABSENT, THIRD], ids=["lists", "unpaired", "third"])
def test_positions_are_never_more_than_counted(rows: list[TokenPair]) -> None:
    sides = [Ragged.from_lists([p.answers[i].tolist() for p in rows]) for i in range(len(rows[0].answers))]
    pairs = TokenPairs(
        Ragged.from_lists([p.prompt.tolist() for p in rows]), sides[0], sides[1], ("",) * len(rows),
        np.arange(len(rows)), {}, tuple(sides[2:]),
    )  # fmt: skip
    for name, layout in LAYOUTS.items():
        counted = layout.positions(pairs, pairs.num_sides)
        for i, pair in enumerate(rows):
            taken = layout.collate([pair], pad_id=tiny.PAD, sides=pairs.num_sides).input_ids.numel()
            assert taken <= counted[i], name


def test_sums_of_an_absent_answer_are_empty() -> None:
    batch = padded.collate(ABSENT, pad_id=tiny.PAD)
    answers = attach_tokens(TokenValues(torch.full((len(batch.tokens.ids),), -2.0)), batch).answers()
    assert answers.lengths.tolist() == [[3, 0, 0], [0, 2, 1]]
    assert answers.sums.tolist() == [[-6, 0, 0], [0, -4, -2]]

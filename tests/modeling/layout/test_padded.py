"""The padded layout: every completion token is predicted from the position before it, and nothing else matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPair
from alphapo_cli.modeling.layout import padded
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.policy import PolicyModel
from tests import tiny

ids = st.integers(tiny.FIRST, 96)
sequences = st.lists(ids, min_size=1, max_size=12)


def pair_of(prompt: list[int], chosen: list[int], rejected: list[int], index: int = 0) -> TokenPair:
    own, first, second = (np.asarray(x, np.int32) for x in (prompt, chosen, rejected))
    return TokenPair(own, first, second, columns={}, index=index)


pair_lists = st.lists(st.tuples(sequences, sequences, sequences), min_size=1, max_size=6).map(
    lambda triples: [pair_of(*t, index=10 + i) for i, t in enumerate(triples)]
)
LM = tiny.model().double()


def sums(pairs: list[TokenPair], pad_id: int = tiny.PAD, sides: int = 2) -> Tensor:
    with torch.no_grad():
        return PolicyModel(LM).score(padded.collate(pairs, pad_id=pad_id, sides=sides)).answers().sums


def read_back(batch: PairBatch) -> dict[int, list[tuple[list[int], int]]]:
    """answer -> (everything the model has seen, the token it then predicts), in order."""
    rows, width = batch.input_ids.shape
    assert batch.predict.max() < rows * width
    seen: dict[int, list[tuple[list[int], int]]] = {}
    for where, target, answer in zip(
        *(x.tolist() for x in (batch.predict, batch.tokens.ids, batch.tokens.answer)), strict=True
    ):
        row, column = divmod(where, width)
        seen.setdefault(answer, []).append((batch.input_ids[row, : column + 1].tolist(), target))
    return seen


@given(pair_lists, st.sampled_from([1, 2]), st.sampled_from([tiny.PAD, tiny.EOS, 50]))
def test_every_token_is_predicted_from_all_before_it(pairs: list[TokenPair], sides: int, pad_id: int) -> None:
    batch = padded.collate(pairs, pad_id=pad_id, sides=sides)
    seen = read_back(batch)
    assert sorted(seen) == list(range(sides * len(pairs)))
    for answer, steps in seen.items():
        pair = pairs[answer % len(pairs)]
        completion = [pair.chosen, pair.rejected][answer // len(pairs)].tolist()
        prompt = pair.prompt.tolist()
        assert steps == [(prompt + completion[:t], completion[t]) for t in range(len(completion))]
    assert batch.index.tolist() == [p.index for p in pairs]
    assert batch.weight.tolist() == [1.0] * len(pairs)
    assert (batch.num_pairs, batch.num_sides) == (len(pairs), sides)


@pytest.mark.slow
@given(pair_lists)
def test_padding_changes_nothing(pairs: list[TokenPair]) -> None:
    alone = torch.cat([sums([pair]) for pair in pairs], dim=1)
    together = sums(pairs)
    assert torch.allclose(alone, together, rtol=0, atol=1e-10)
    assert torch.equal(together, sums(pairs, pad_id=50))
    assert torch.allclose(together[:1], sums(pairs, sides=1), rtol=0, atol=1e-10)


@pytest.mark.slow
@given(pair_lists, st.randoms(use_true_random=False))
def test_order_changes_nothing(pairs: list[TokenPair], rng: object) -> None:
    order = list(range(len(pairs)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    assert torch.allclose(sums([pairs[i] for i in order]), sums(pairs)[:, order], rtol=0, atol=1e-10)


def test_padding_gets_no_gradient() -> None:
    lm = tiny.model().double()
    pairs = [pair_of([5], [6, 7], [8]), pair_of([9, 10, 11, 12], [13], [14, 15, 16])]
    PolicyModel(lm).score(padded.collate(pairs, pad_id=50)).logps.sum().backward()
    grad = lm.model.embed_tokens.weight.grad
    assert grad[50].abs().max() == 0
    # what a token predicts counts, so all but the last token of each row and no other is touched
    touched = set(grad.abs().amax(-1).nonzero().flatten().tolist())
    assert touched == {5, 6, 9, 10, 11, 12, 14, 15}


def test_reference_weights_and_columns_go_with_their_pairs() -> None:
    pairs = [
        replace(pair_of([5 + i], [5 + i], [5 + i], index=i), columns={"score": 0.5 + i, "own": 1.0}) for i in range(3)
    ]
    pairs[1] = TokenPair(pairs[1].prompt, pairs[1].chosen, pairs[1].rejected, {"score": 7.0}, 1)
    reference = torch.arange(6.0).view(2, 3)
    batch = padded.collate(pairs, pad_id=0, weights=[1.0, 0.0, 1.0], reference=reference)
    assert batch.weight.tolist() == [1.0, 0.0, 1.0]
    assert batch.reference is not None
    assert torch.equal(batch.reference, reference)
    assert {name: column.tolist() for name, column in batch.columns.items()} == {"score": [0.5, 7.0, 2.5]}
    one = padded.collate(pairs, pad_id=0, reference=reference, sides=1)
    assert one.reference is not None
    assert torch.equal(one.reference, reference[:1])


def test_generated_lengths_are_those_of_real_pairs() -> None:
    """The generator behind the other tests: median lengths and spread of HH-RLHF, in words."""
    from random import Random

    rng = Random(0)
    drawn = np.array([tiny.lengths(rng, 1.0) for _ in range(4000)])
    assert np.median(drawn, axis=0) == pytest.approx([53, 20, 25], rel=0.1)
    assert np.log(drawn).std(axis=0) == pytest.approx([1.07, 0.95, 1.0], rel=0.07)
    if tiny.HH.is_file():
        real = np.array(
            [
                [len(getattr(p.verbatim, side).split()) for side in ("prompt", "chosen", "rejected")]
                for p in tiny.hh_dialogues()
            ]
        )
        assert np.log(drawn).mean(axis=0) == pytest.approx(np.log(real).mean(axis=0), abs=0.1)
        assert np.log(drawn).std(axis=0) == pytest.approx(np.log(real).std(axis=0), rel=0.07)

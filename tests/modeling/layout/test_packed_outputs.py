"""All that an objective can read of a micro-batch is the same in the packed layout and in the padded one.

A layout changes log-probs, KL and statistics of the tokens, the guide and the turn that each token comes with, and whose
it is; what an objective makes of these is the same code. Where they agree on an architecture, and their gradients under
any cotangents, every objective agrees there. In float64 (`tiny.Wide`), on rows of every kind that objectives read.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.logprobs import TokenLogProbs
from alphapo_cli.modeling.policy import PolicyModel, Wanted
from tests import tiny
from tests.every_objective import ANSWERS, rows_of
from tests.pair_shapes import ARCHITECTURES, CORNERS, MODELS, drawn_pairs, pair_lists

# Beside the kinds of rows that come from data, those that training adds answers to other prompts to.
KINDS = (*ANSWERS, "mismatched")


def data_of(kind: str, pairs: list[TokenPair]) -> TokenPairs:
    """The pairs as rows of that kind, with a guide's value for each token and columns, all of them drawn."""
    data = rows_of("unpaired", pairs).with_mismatched() if kind == "mismatched" else rows_of(kind, pairs)
    rng = np.random.default_rng(len(pairs))
    guide = tuple(rng.normal(size=len(side.ids)).astype(np.float32) for side in data.answers)
    return replace(data, guide=guide, columns={name: rng.normal(size=len(data)) for name in ("score", "other")})


def read(lm: Any, reference: Any, layout: str, data: TokenPairs) -> tuple[PairBatch, TokenLogProbs]:
    """A micro-batch of all rows, and everything that a policy says of it."""
    count, sides = len(data), data.num_sides
    batch = LAYOUTS[layout].collate(
        list(data), pad_id=tiny.PAD, sides=sides, weights=[float(i % 2) for i in range(count)],
        reference=torch.arange(sides * count, dtype=torch.float64).view(sides, count),
    )  # fmt: skip
    wanted = Wanted(statistics=True, kl_from=PolicyModel(reference, layout=layout))
    return batch, PolicyModel(lm, layout=layout).score(batch, wanted)


def gradients(lm: Any, output: Tensor) -> dict[str, Tensor]:
    """Of all parameters under a cotangent that is drawn, and the same for the same number of tokens."""
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(len(output)), dtype=torch.float64)
    names, parameters = zip(*lm.named_parameters(), strict=True)
    found = torch.autograd.grad(output, parameters, cotangent, retain_graph=True)
    return dict(zip(names, found, strict=True))


def assert_same(ours: Any, theirs: Any, what: str, tolerance: float) -> None:
    """Field by field where there are some."""
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda said: f"{what}: {said}")
    elif is_dataclass(theirs):
        for field in fields(theirs):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name), f"{what}.{field.name}", tolerance)
    else:
        assert ours == theirs, what


@functools.cache
def models(name: str, layout: str) -> tuple[Any, Any]:
    """(policy, reference) of an architecture."""
    return copy.deepcopy(MODELS[name]), tiny.perturbed(MODELS[name], seed=1)


# What the batch itself brings to an objective, and the places of its tokens: facts, so exactly equal.
FACTS = ("tokens", "index", "weight", "reference")
PLACES = ("pair", "side", "position")


def assert_same_outputs(name: str, kind: str, pairs: list[TokenPair]) -> None:
    data = data_of(kind, pairs)
    with tiny.Wide():
        (ours, mine), (theirs, known) = (read(*models(name, layout), layout, data) for layout in ("packed", "padded"))
        for field in FACTS:
            assert_same(getattr(ours, field), getattr(theirs, field), field, 0)
        assert {key: x.tolist() for key, x in ours.columns.items()} == {
            k: x.tolist() for k, x in theirs.columns.items()
        }
        for place in PLACES:
            assert_same(getattr(mine.tokens, place), getattr(known.tokens, place), place, 0)
        assert_same(mine, known, "tokens", 1e-10)
        assert_same(mine.answers(), known.answers(), "answers", 1e-10)
        assert known.statistics is not None
        assert known.statistics.entropy.dtype == known.kl.dtype == torch.float64
        assert (known.tokens.guide is not None, known.tokens.turn is not None) == (True, kind == "turns")
        for what in ("logps", "kl"):  # the others have no gradient
            found, expected = (
                gradients(models(name, layout)[0], getattr(tokens, what))
                for layout, tokens in (("packed", mine), ("padded", known))
            )
            for parameter, gradient in expected.items():
                assert gradient.abs().max() > 0, (what, parameter)
                assert tiny.relative_error(found[parameter], gradient) <= 1e-10, (what, parameter)
        assert not any(x.requires_grad for x in (known.statistics.entropy, known.statistics.sum_p2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_the_same_in_both_layouts(name: str, kind: str) -> None:
    """The shapes that go wrong first, and four that are drawn for this architecture and kind."""
    assert_same_outputs(name, kind, [*CORNERS, *drawn_pairs(f"{name} {kind}")])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=20)
@given(pairs=pair_lists)
def test_it_is_the_same_whatever_the_pairs(name: str, kind: str, pairs: list[TokenPair]) -> None:
    assert_same_outputs(name, kind, [*CORNERS, *pairs])

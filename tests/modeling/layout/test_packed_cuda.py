"""On a CUDA device: FlexAttention's compiled kernel gives what the padded layout gives, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch

from alphapo_cli.modeling.layout import packed, padded
from alphapo_cli.modeling.layout.attention import FLEX
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.policy import PolicyModel
from tests import tiny
from tests.pair_shapes import ARCHITECTURES, CORNERS, model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAIRS = [*CORNERS, *tiny.token_pairs(8, seed=3, scale=0.1)]


def loss_and_gradients(lm: torch.nn.Module, batch: PairBatch, *, bf16: bool) -> tuple[float, torch.Tensor]:
    policy = PolicyModel(lm, bf16=bf16)
    loss = tiny.objective("objective=alphapo")(policy.score(batch.to(torch.device("cuda"))).answers()).loss.mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded(name: str) -> None:
    """In float32 to round-off; under bf16 autocast, over four models, packed is as near to float32 as padded is."""
    torch._dynamo.reset()  # or the compiled kernel would meet its limit of variants, and go on uncompiled
    rows, wide = packed.collate(PAIRS, pad_id=tiny.PAD), padded.collate(PAIRS, pad_id=tiny.PAD)
    rounding = {"packed": 0.0, "padded": 0.0}
    for seed in range(4):
        lm = model(name, seed=seed, spread=0.1).cuda()
        loss, exact = loss_and_gradients(copy.deepcopy(lm), wide, bf16=False)
        ours = copy.deepcopy(lm)
        found, gradient = loss_and_gradients(ours, rows, bf16=False)
        assert ours.config._attn_implementation == FLEX
        assert abs(found - loss) <= 2e-5 * max(1.0, abs(loss))  # the bounds that hold on the CPU
        assert tiny.relative_error(gradient, exact) <= 2e-5
        for layout, batch in (("packed", rows), ("padded", wide)):
            _, coarse = loss_and_gradients(copy.deepcopy(lm), batch, bf16=True)
            rounding[layout] += tiny.relative_error(coarse, exact) ** 2
    # Both round products to 2^-9 of them, in orders of their own. A pair of short answers, whose rounding weighs most,
    # may be lucky in one layout: on the CPU the ratio of a single model is up to 2.7, that of eight is 1.0.
    assert rounding["packed"] <= 4 * rounding["padded"]

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


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded(name: str, bf16: bool) -> None:
    torch._dynamo.reset()  # or the compiled kernel would meet its limit of variants, and go on uncompiled
    lm = model(name, spread=0.1).cuda()
    other = copy.deepcopy(lm)
    loss, ours = loss_and_gradients(lm, packed.collate(PAIRS, pad_id=tiny.PAD), bf16=bf16)
    assert lm.config._attn_implementation == FLEX
    expected, theirs = loss_and_gradients(other, padded.collate(PAIRS, pad_id=tiny.PAD), bf16=bf16)
    # float32: the bound that holds on the CPU; bf16 rounds every product to 1/256, in another order each.
    tolerance = 2e-2 if bf16 else 2e-5
    assert abs(loss - expected) <= tolerance * max(1.0, abs(expected))
    assert tiny.relative_error(ours, theirs) <= tolerance

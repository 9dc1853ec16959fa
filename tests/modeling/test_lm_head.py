"""The output layer in chunks: log-probs, their gradient, and statistics, against torch's own softmax and differences."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from alphapo_cli.modeling.lm_head import Head, chunks, kl_from, log_probs_and_statistics, observe, token_log_probs

N, H, V = 7, 5, 11
ROW = V * 4  # bytes of one row of float32 logits
CHUNKS = {"a row": ROW, "three rows": 3 * ROW, "all": 100 * ROW}
SHAPES = {"plain": (1.0, None), "scaled": (0.25, None), "capped": (1.0, 2.0), "scaled and capped": (3.0, 1.5)}


def inputs(dtype: torch.dtype = torch.float64, **linear: Any) -> tuple[Tensor, Tensor, nn.Linear]:
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(H, V, **{"bias": False, **linear}).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    hidden = torch.randn(N, H, generator=g).to(dtype).requires_grad_()
    return hidden, torch.randint(0, V, (N,), generator=g), layer


def plain(head: Head, hidden: Tensor) -> Tensor:
    """All log-probs [N, V], written down."""
    logits = head.linear(hidden) * head.factor
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_statistics_and_gradient(shape: str, size: str) -> None:
    hidden, targets, layer = inputs()
    head = Head(layer, *SHAPES[shape])
    logps, facts = log_probs_and_statistics(hidden, targets, head, chunk_bytes=CHUNKS[size])
    table = plain(head, hidden)
    assert torch.allclose(logps, table.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-14)
    assert facts is not None
    assert torch.allclose(facts.entropy, -(table.exp() * table).sum(-1), rtol=0, atol=1e-14)
    assert torch.allclose(facts.sum_p2, table.exp().square().sum(-1), rtol=0, atol=1e-14)
    assert not facts.entropy.requires_grad

    def function(h: Tensor, w: Tensor) -> Tensor:
        return token_log_probs(h, targets, head, chunk_bytes=CHUNKS[size])

    # finite differences; what is made again in the backward pass may be rounded otherwise than what was kept
    assert gradcheck(function, (hidden, layer.weight), nondet_tol=1e-12)


@pytest.mark.parametrize("size", CHUNKS)
def test_a_bias_is_respected(size: str) -> None:
    hidden, targets, layer = inputs(bias=True)
    head = Head(layer, 0.5, 2.0)
    logps, facts = log_probs_and_statistics(hidden, targets, head, chunk_bytes=CHUNKS[size])
    table = plain(head, hidden)
    assert torch.allclose(logps, table.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-14)
    assert facts is not None
    assert torch.allclose(facts.entropy, -(table.exp() * table).sum(-1), rtol=0, atol=1e-14)
    wanted = (hidden, layer.weight, layer.bias)
    ours = torch.autograd.grad(logps.square().sum(), wanted)
    expected = torch.autograd.grad(table.gather(1, targets[:, None]).square().sum(), wanted)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, expected, strict=True))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    hidden, targets, layer = inputs()
    layer.requires_grad_(False)
    token_log_probs(hidden, targets, Head(layer)).sum().backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None
    layer.requires_grad_(True)
    token_log_probs(hidden.detach(), targets, Head(layer)).sum().backward()
    assert layer.weight.grad is not None


def test_a_graph_can_be_walked_twice() -> None:
    hidden, targets, layer = inputs()
    logps = token_log_probs(hidden, targets, Head(layer, 1.0, 2.0), chunk_bytes=3 * ROW)
    first, second = (torch.autograd.grad(logps.sum(), hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.allclose(first, second, rtol=0, atol=1e-14)


def test_bf16_autocast_takes_softmax_in_float32() -> None:
    hidden, targets, layer = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_log_probs(hidden, targets, Head(layer), chunk_bytes=3 * ROW)
        logps.sum().backward()
    logits = (hidden.detach().bfloat16() @ layer.weight.detach().bfloat16().t()).double()
    assert logps.dtype == torch.float32
    # from bf16 logits on, nothing is rounded to less than float32
    assert torch.allclose(
        logps.double(), logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-6
    )
    p = logits.softmax(-1)
    slope = torch.nn.functional.one_hot(targets, V) - p
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    exact = slope @ layer.weight.double()
    assert (hidden.grad.double() - exact).abs().max() < 0.02 * exact.abs().max()  # three bf16 roundings of 1/256


def test_chunks_cover_all_rows_and_the_last_is_full() -> None:
    assert chunks(10, 4, 3 * 16) == [1, 3, 3, 3]
    assert chunks(9, 4, 3 * 16) == [3, 3, 3]
    assert chunks(2, 4, 3 * 16) == [2]
    assert chunks(2, 4, 1) == [1, 1]  # a row is the least
    assert chunks(0, 4, 16) == []


@pytest.mark.parametrize("bias", [False, True], ids=["matrix", "bias"])
def test_no_tokens_is_no_error(bias: bool) -> None:
    hidden, targets, layer = inputs(bias=bias)
    head = Head(layer)
    logps, facts = log_probs_and_statistics(hidden[:0], targets[:0], head)
    assert facts is not None
    assert [len(x) for x in (logps, facts.entropy, facts.sum_p2)] == [0, 0, 0]
    assert [len(x) for x in observe(hidden[:0], targets[:0], head, described=0)] == [0, 0, 0]
    assert len(kl_from(hidden[:0].detach(), head, hidden[:0], head)) == 0
    # A step without tokens still has a gradient: zeros, which every process of a group needs.
    (2 * logps).sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad == 0).all()


@pytest.mark.parametrize("bias", [False, True], ids=["matrix", "bias"])
@pytest.mark.parametrize("size", CHUNKS)
def test_a_logit_of_minus_infinity_counts_as_no_token(bias: bool, size: str) -> None:
    """A model that masks an id of its vocabulary: all is as if the id did not exist."""
    hidden, targets, layer = inputs(bias=bias)
    earlier = inputs(bias=bias)[2]
    with torch.no_grad():
        earlier.weight.mul_(0.5)
        for linear in (layer, earlier):
            if bias:
                linear.bias[-1] = -torch.inf
            else:  # a product beyond float64
                hidden[:, -1] = 10.0
                linear.weight[-1] = torch.tensor([0.0] * (H - 1) + [-1e308], dtype=torch.float64)
    targets = targets.clamp(max=V - 2)
    head, before = Head(layer), Head(earlier)
    short = [Head(nn.Linear(H, V - 1, bias=bias).double()) for _ in range(2)]
    with torch.no_grad():
        for small, linear in zip(short, (layer, earlier), strict=True):
            small.linear.weight.copy_(linear.weight[:-1])  # type: ignore[operator]
            if bias:
                small.linear.bias.copy_(linear.bias[:-1])  # type: ignore[operator]
    table, start = (plain(small, hidden) for small in short)
    entropy, chunk = -(table.exp() * table).sum(-1), CHUNKS[size]
    logps, facts = log_probs_and_statistics(hidden, targets, head, chunk_bytes=chunk)
    assert facts is not None
    assert torch.allclose(facts.entropy, entropy, rtol=0, atol=1e-14)
    assert torch.allclose(facts.sum_p2, table.exp().square().sum(-1), rtol=0, atol=1e-14)
    seen, described, moved = observe(
        hidden, targets, head, described=N, start=(hidden.detach(), before), chunk_bytes=chunk
    )
    assert torch.allclose(seen, table.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-14)
    assert torch.allclose(described, entropy, rtol=0, atol=1e-14)
    assert torch.allclose(moved, (table.exp() * (table - start)).sum(-1), rtol=0, atol=1e-14)
    back = kl_from(hidden.detach(), before, hidden, head, chunk_bytes=chunk)
    expected = (start.detach().exp() * (start.detach() - table)).sum(-1)
    assert torch.allclose(back, expected, rtol=0, atol=1e-14)
    for ours, theirs in ((logps, table.gather(1, targets[:, None])[:, 0]), (back, expected)):
        for source, reference in ((layer.weight, short[0].linear.weight), (hidden, hidden)):
            (mine,) = torch.autograd.grad(ours.square().sum(), source, retain_graph=True)
            (other,) = torch.autograd.grad(theirs.square().sum(), reference, retain_graph=True)
            assert torch.allclose(mine[: len(other)], other, rtol=0, atol=1e-12)


PEAK = """
import sys, torch
from alphapo_cli.modeling.layout.registry import packed
from alphapo_cli.modeling.policy import PolicyModel
from tests import tiny

torch.set_num_threads(1)

def resident(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024

lm = tiny.model("llama", vocab=int(sys.argv[1]), hidden_size=128, intermediate_size=384, num_hidden_layers=6, spread=0.02)
policy, objective = PolicyModel(lm), tiny.objective("objective=alphapo")
optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3, fused=True)

def step(pairs):
    objective(policy.score(packed.collate(pairs, pad_id=0)).answers()).loss.mean().backward()

pairs = list(tiny.token_pairs(24, seed=1, vocab=8000, scale=1.5))
step(pairs[:1])
optimizer.step()
base = resident("VmRSS")  # weights, gradients, optimizer state
optimizer.zero_grad()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
step(pairs)
print(resident("VmHWM") - base, sum(len(p.chosen) + len(p.rejected) for p in pairs))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_vocabulary() -> None:
    """Peak of a step beyond weights, gradients and optimizer state, at 128k against 8k tokens of vocabulary."""
    peaks = []
    for vocab in (8_000, 128_000):
        out = subprocess.run([sys.executable, "-c", PEAK, str(vocab)], check=True, capture_output=True, text=True)
        peak, tokens = map(float, out.stdout.splitlines()[-1].split())
        peaks.append(peak)
    assert tokens * 128_000 * 4 / 2**20 > 2 * peaks[1]  # all logits at once would show
    assert peaks[1] <= 1.3 * peaks[0], peaks

"""Where probability went, against distributions of full logits worked out in plain Python, position by position."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from alphapo_cli.modeling.lm_head import Head
from alphapo_cli.probe.mass import TOP, Moved, Positions, moved_mass
from alphapo_cli.probe.rank_correlation import spearman

H = 16


def layers(vocab: int, seed: int = 0, cap: float | None = None) -> tuple[Head, Head]:
    torch.manual_seed(seed)
    return tuple(Head(nn.Linear(H, vocab, bias=False), 1.0, cap) for _ in range(2))  # type: ignore[return-value]


def positions(count: int, vocab: int, seed: int = 1) -> Positions:
    g = torch.Generator().manual_seed(seed)
    hidden, start = (3 * torch.randn(count, H, generator=g) for _ in range(2))
    target, rejected = (torch.randint(vocab, (count,), generator=g) for _ in range(2))
    rejected[::3] = -1
    return Positions(hidden, start, target, rejected)


def distribution(head: Head, state: torch.Tensor) -> list[float]:
    """softmax(cap tanh(W h / cap)) in Python's floats."""
    weights = head.matrix.double().tolist()
    logits = [math.fsum(w * x for w, x in zip(row, state.double().tolist(), strict=True)) for row in weights]
    if head.cap is not None:
        logits = [head.cap * math.tanh(z / head.cap) for z in logits]
    top = max(logits)
    total = math.fsum(math.exp(z - top) for z in logits)
    return [math.exp(z - top) / total for z in logits]


def expected(at: Positions, head: Head, start_head: Head, ends: list[int], i: int) -> dict[str, float]:
    now, before = distribution(head, at.hidden[i]), distribution(start_head, at.start[i])
    change = [a - b for a, b in zip(now, before, strict=True)]
    gain = [max(x, 0.0) for x in change]
    rejected, target = int(at.rejected[i]), int(at.target[i])
    to_rejected = gain[rejected] if rejected >= 0 else 0.0
    to_end = math.fsum(gain[e] for e in ends if e != rejected)

    def top(p: list[float]) -> list[int]:
        return sorted(range(len(p)), key=lambda v: -p[v])[:TOP]

    def entropy(p: list[float]) -> float:
        return -math.fsum(p[v] * math.log(p[v]) for v in top(p))

    mass, mass_before = (math.fsum(p[v] for v in top(p)) for p in (now, before))
    return {
        "moved": math.fsum(gain),
        "to_rejected": to_rejected,
        "to_end": to_end,
        "to_other": math.fsum(gain) - to_rejected - to_end,
        "to_neither": math.fsum(x for v, x in enumerate(change) if v not in (target, rejected)),
        "top10": mass,
        "top10_change": mass - mass_before,
        "top10_entropy": entropy(now),
        "top10_entropy_change": entropy(now) - entropy(before),
        "likeliest_changed": float(top(now)[0] != top(before)[0]),
        "chosen_left_top10": float(target in top(before) and target not in top(now)),
        "best": float(max(range(len(change)), key=change.__getitem__)),
    }


@pytest.mark.parametrize("cap", [None, 2.0], ids=["plain", "soft-capped"])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20], ids=["a row at a time", "all rows at once"])
def test_it_is_that_of_full_distributions(chunk_bytes: int, cap: float | None) -> None:
    head, start_head = layers(37, cap=cap)
    at, ends = positions(12, 37), [2, 5]
    ours = moved_mass(at, head, start_head, ends, chunk_bytes=chunk_bytes)
    for i in range(12):
        theirs = expected(at, head, start_head, ends, i)
        assert int(ours.gainers[i, 0]) == theirs.pop("best")
        for name, value in theirs.items():
            # The logits are float32 sums of 16 products of size up to 10.
            assert float(getattr(ours, name)[i]) == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("vocab", [11, 5000])
def test_gains_and_losses_sum_to_nothing(vocab: int) -> None:
    head, start_head = layers(vocab)
    ours = moved_mass(positions(40, vocab), head, start_head, [2])
    assert ours.residual.abs().max() < 1e-12  # float64 sums of up to 5000 numbers
    assert torch.allclose(ours.moved, ours.to_rejected + ours.to_end + ours.to_other, rtol=0, atol=1e-12)
    assert (ours.to_other >= -1e-12).all()


def test_what_has_not_changed_has_not_moved() -> None:
    head, _ = layers(37)
    at = positions(6, 37)
    same = moved_mass(Positions(at.hidden, at.hidden, at.target, at.rejected), head, head, [2])
    for name in ("moved", "residual", "top10_change", "likeliest_changed", "chosen_left_top10"):
        assert not getattr(same, name).any(), name


def test_distributions_are_never_there_for_all_positions() -> None:
    """The largest tensor that is made has the rows of one block, whatever the number of positions."""
    vocab, sizes = 1024, []

    class Sized(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[-1] == vocab:
                sizes.append(result.shape[0])
            return result

    head, start_head = layers(vocab)
    with Sized():
        moved = moved_mass(positions(200, vocab), head, start_head, [2], chunk_bytes=8 * 8 * vocab * 4)
    assert isinstance(moved, Moved)
    assert max(sizes) <= 8


@pytest.mark.slow
def test_at_128k_tokens_memory_grows_by_no_more_than_a_chunk_of_logits() -> None:
    # malloc gives back what is freed, or it would be counted still.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.probe.peak_memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks["with"] - peaks["without"] <= peaks["chunk"]


def test_no_positions() -> None:
    head, start_head = layers(37)
    assert len(moved_mass(positions(0, 37), head, start_head, [2]).moved) == 0


class TestSpearman:
    def test_known_values(self) -> None:
        # Kendall and Gibbons' example of ranks 1..5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
        assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).rho == pytest.approx(0.8)
        assert spearman([1, 2, 3, 4], [10, 100, 1000, 10000]).rho == 1.0
        assert spearman([1, 2, 3, 4], [4, 3, 2, 1]).rho == -1.0

    def test_ties_share_their_rank(self) -> None:
        x, y = [1.0, 1.0, 2.0, 3.0, 3.0, 3.0], [2.0, 1.0, 3.0, 3.0, 5.0, 4.0]
        ranks = [[1.5, 1.5, 3, 5, 5, 5], [2, 1, 3.5, 3.5, 6, 5]]
        assert spearman(x, y).rho == pytest.approx(float(np.corrcoef(np.array(ranks))[0, 1]))

    def test_undefined_and_missing_values(self) -> None:
        assert spearman([1, 1, 1, 1], [1, 2, 3, 4]).rho is None
        found = spearman([1, 2, math.nan, 3, 4, math.inf], [1, 2, 3, 3, 4, 5])
        assert (found.rho, found.pairs) == (1.0, 4)

    @pytest.mark.parametrize(("n", "excludes_0"), [(4, False), (5, False), (8, True), (400, True)])
    def test_a_perfect_order_of_few_pairs_is_no_certainty(self, n: int, *, excludes_0: bool) -> None:
        """Four pairs are in order, or in its reverse, once in twelve times by chance."""
        up, down = spearman(range(n), range(n)), spearman(range(n), range(n, 0, -1))
        assert (up.rho, up.high) == pytest.approx((1.0, 1.0))
        assert up.low < 1.0
        assert (up.low > 0) is excludes_0
        assert (down.low, down.high) == pytest.approx((-1.0, -up.low))

    def test_the_interval_holds_as_often_as_it_says(self) -> None:
        """Normal pairs of correlation 0.5, whose rank correlation is 6/pi asin(0.25); of 400 draws 95 %, 4 s.e."""
        g, truth, inside = np.random.default_rng(0), 6 / math.pi * math.asin(0.25), 0
        for _ in range(400):
            x = g.normal(size=60)
            found = spearman(x, 0.5 * x + math.sqrt(0.75) * g.normal(size=60))
            inside += found.low <= truth <= found.high
        assert abs(inside / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)

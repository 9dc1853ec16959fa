"""Passes of a policy without weights over micro-batches, and the bytes that their tensors take at most."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import first_line
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.lm_head import observe
from alphapo_cli.modeling.policy import PolicyModel, Wanted, bare, head_of, inference
from alphapo_cli.stages.estimate.grouped import GroupedProducts
from alphapo_cli.stages.estimate.live_bytes import LiveBytes
from alphapo_cli.stages.estimate.repeated import follow
from alphapo_cli.stages.estimate.skeleton import Skeleton
from alphapo_cli.training.data_order import DataOrder

LOOKED_AT = 2000  # optimizer steps among which the largest micro-batch is looked for


@dataclass(frozen=True)
class Pass:
    """Forward and backward pass of a micro-batch.

    Attributes:
        kept: bytes that the forward pass leaves for the backward one.
        peak: most bytes at a time beside the weights, the gradients that were there before not counted.
        coarse: why this is a formula's result and not that of the pass itself; None where it is the latter.
    """

    kept: int
    peak: int
    coarse: str | None = None


def training_pass(skeleton: Skeleton, batch: PairBatch, wanted: Wanted, *, full_gradients: bool) -> Pass:
    """Run forward and backward pass.

    Args:
        skeleton: the policy.
        batch: the micro-batch.
        wanted: what the objective reads beside log-probs.
        full_gradients: whether every gradient exists before, as from the second micro-batch of a step on; else they
            grow during the backward pass and are part of the result.

    Returns:
        Its bytes.
    """
    policy = skeleton.policy

    def run(watch: Callable[[LiveBytes], None]) -> tuple[list[int], int]:
        trained = [p for p in policy.parameters() if p.requires_grad]
        for p in trained:
            p.grad = torch.empty_like(p) if full_gradients else None
        before = [*policy.parameters(), *policy.buffers(), *(p.grad for p in trained if p.grad is not None)]
        if wanted.kl_from is not None:
            before += [*wanted.kl_from.parameters(), *wanted.kl_from.buffers()]
        with LiveBytes(before) as live:
            watch(live)
            values = policy(batch.to(policy.device), wanted)  # without the masks that an earlier pass has made
            kept = live.live
            total = values.logps.sum() if values.kl is None else values.logps.sum() + values.kl.sum()
            del values
            total.backward()
        return live.course, kept

    try:
        with skeleton.mode, GroupedProducts(), _without_log():
            return Pass(*follow(bare(policy.lm), run))
    except Exception as error:  # shapes that depend on numbers, as of experts that run one after another
        kept = _formula(skeleton, batch)
        grown = 0 if full_gradients else skeleton.trained
        return Pass(kept, kept + grown, f"{type(error).__name__}: {first_line(error)}")
    finally:
        for p in policy.parameters():
            p.grad = None


def measuring_pass(skeleton: Skeleton, policy: PolicyModel, batch: PairBatch) -> int:
    """Most bytes at a time, beside the weights, of a measurement of a batch by the probe."""
    chosen = int((batch.tokens.side == 0).sum())

    def run(watch: Callable[[LiveBytes], None]) -> tuple[list[int], int]:
        with inference(policy), LiveBytes([*policy.parameters(), *policy.buffers()]) as live:
            watch(live)
            hidden, head = policy.hidden(batch.to(policy.device)), head_of(policy.lm)
            start = (hidden[:chosen], head)
            observe(hidden, batch.tokens.ids, head, described=chosen, start=start, chunk_bytes=policy.chunk_bytes)
        return live.course, 0

    try:
        with skeleton.mode, GroupedProducts(), _without_log():
            return follow(bare(policy.lm), run)[1]
    except Exception:
        return _formula(skeleton, batch) // int(bare(policy.lm).config.get_text_config().num_hidden_layers)


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keep torch's account of an operation without numbers that failed off the terminal: the plan says so itself."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _formula(skeleton: Skeleton, batch: PairBatch) -> int:
    """Bytes that a decoder keeps: ten tensors of the hidden width and four of the inner one a layer.

    Of experts a token is sent to its own alone. With gradient checkpointing a layer keeps its input, and one layer at a
    time all of it.

    Returns:
        The bytes.
    """
    config = bare(skeleton.policy.lm).config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    inner *= getattr(config, "num_experts_per_tok", None) or 1
    item = 2 if skeleton.policy.bf16 else next(skeleton.policy.parameters()).element_size()
    layers, each = config.num_hidden_layers, 10 * hidden + 4 * inner
    checkpointing = bool(getattr(bare(skeleton.policy.lm), "is_gradient_checkpointing", False))
    kept = layers * hidden + each if checkpointing else layers * each
    return int(batch.input_ids.numel() * kept * item)


@dataclass(frozen=True)
class Largest:
    """The largest micro-batches of a run: pairs of the largest one at the head of a step, and of the largest later one."""

    first: np.ndarray
    later: np.ndarray | None  # None: every step is one micro-batch
    looked_at: int  # optimizer steps


def largest(order: DataOrder, ranks: int) -> Largest:
    """Find the micro-batches with the most positions.

    Args:
        order: the order of pairs, with the positions that each takes.
        ranks: processes that share a step.

    Returns:
        Their pairs. In a long run some of the steps are looked at, spread over all of it.
    """
    count = min(order.total_steps, LOOKED_AT)
    steps = np.unique(np.linspace(0, order.total_steps - 1, count).astype(int))
    best: list[tuple[int, np.ndarray | None]] = [(-1, None), (-1, None)]
    for step in steps.tolist():
        for place, indices in enumerate(order.parts(step)):
            sizes = positions_of(order, indices)
            at = min(place // ranks, 1)
            if sizes > best[at][0]:
                best[at] = (sizes, indices)
    first, later = best[0][1], best[1][1]
    assert first is not None
    return Largest(first, later, len(steps))


def positions_of(order: DataOrder, indices: np.ndarray) -> int:
    """Positions that a micro-batch takes."""
    assert order.sizes is not None
    sizes = order.sizes[indices]
    return int(sizes.max() * len(sizes) if order.as_widest else sizes.sum())


def batch_of(skeleton: Skeleton, pairs: TokenPairs, indices: np.ndarray, sides: int, pad_id: int) -> PairBatch:
    """Lay pairs out as training does."""
    return skeleton.policy.layout.collate([pairs[int(i)] for i in indices], pad_id=pad_id, sides=sides)

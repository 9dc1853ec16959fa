"""Attention over packed rows, registered with transformers under names of its own.

A prepared model calls these functions for all its attention. With `packing` among the keyword arguments of its forward,
which every layer passes on, they attend within a pair's segments. Without it (generation, the padded layout) they
compute what transformers' "sdpa" does, and soft-capping besides, which "sdpa" lacks.

`sdpa`: one scaled_dot_product_attention per answer and pair. `flex`: one FlexAttention kernel per row, for CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alphapo_cli.modeling.layout.packing import Packing

SDPA, FLEX = "alphapo_packed_sdpa", "alphapo_packed_flex"
# transformers passes a mask of four dimensions on as it is, instead of making one of T x T. This one is never read.
UNREAD_MASK = torch.empty(1, 1, 0, 0)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, answer by answer.

    Args:
        module: the attention module, read only if `packing` is None.
        query: [1, heads, T, D], or [1, heads, K, D] if the last layer asks for `packing.rows` only.
        key: [1, key heads, T, D].
        value: [1, key heads, T, D].
        attention_mask: read only if `packing` is None.
        packing: segments of the row; None: rows are not packed.
        dropout: probability of attention dropout.
        scaling: factor on the scores; None: D^-1/2.
        sliding_window: positions that a query sees; None: all before it.
        softcap: cap of the scores, cap * tanh(score / cap); None: no cap.
        **others: for transformers' "sdpa" if `packing` is None.

    Returns:
        [1, T or K, heads, D], and None for the attention weights.
    """
    if packing is None:
        return _unpacked(module, query, key, value, attention_mask, dropout, scaling, softcap, others)
    pruned = query.shape[2] < key.shape[2]
    segments = packing.segments
    # split, never slices: the backward of each slice would fill a tensor as large as the whole row
    lengths = [n for s in segments for n in (s.shared + s.own[0], *s.own[1:])]
    queries = query.split([n for s in segments for n in (s.shared + s.own[0] - s.unread * pruned, *s.own[1:])], 2)
    keys, values = key.split(lengths, 2), value.split(lengths, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = packing.causal(q.shape[2], k.shape[2], sliding_window, q.device)
        if softcap is not None:
            return _soft_capped(q, k, v, mask, dropout, scaling, softcap)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    out = []
    first = 0  # index of a pair's first part in the lists
    for s in segments:
        out.append(attend(queries[first], keys[first], values[first]))
        for part, length in enumerate(s.own[1:], first + 1):
            if length:
                k, v = (torch.cat((x[first][:, :, : s.shared], x[part]), 2) for x in (keys, values))
                out.append(attend(queries[part], k, v))
        first += len(s.own)
    return torch.cat(out, 2).transpose(1, 2), None


def flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`segment_attention` as one kernel that skips blocks in which nothing attends to anything; the same arguments.

    Returns:
        [1, T or K, heads, D], and None for the attention weights.

    Raises:
        ValueError: attention dropout is set, which FlexAttention does not have.
    """
    if packing is None:
        return _unpacked(module, query, key, value, attention_mask, dropout, scaling, softcap, others)
    if dropout:
        raise ValueError("FlexAttention has no dropout: set attention_dropout to 0 in the model's config")

    def cap(score: Tensor, *place: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

    mask = packing.block_mask(query.shape[2] < key.shape[2], sliding_window, query.device)
    out: Tensor = _flex(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2), None


@functools.cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention as kernel

    # Uncompiled it computes the whole matrix of scores, which only small tests can afford.
    return torch.compile(kernel) if device == "cuda" else kernel


def _unpacked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    others: dict[str, Any],
) -> tuple[Tensor, None]:
    if softcap is not None:
        return _soft_capped(query, key, value, mask, dropout, scaling, softcap).transpose(1, 2), None
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    out: Tensor = sdpa(module, query, key, value, mask, dropout=dropout, scaling=scaling, **others)[0]
    return out, None


def _soft_capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, cap: float
) -> Tensor:
    """Attention with scores cap * tanh(score / cap), softmax in float32 or wider; no CPU kernel offers it."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    if mask is None:  # causal, or one generated token that sees all before it
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = mask.tril() if q.shape[2] > 1 else mask
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite: a padding row may have every key masked
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return F.dropout(wide.softmax(-1).to(v.dtype), dropout) @ v


FUNCTIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {SDPA: segment_attention, FLEX: flex_attention}
for _name, _function in FUNCTIONS.items():
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

"""The output layer (LM head): from hidden states at completion positions to log-probs, in chunks of logits.

Logits are computed in chunks of at most `chunk_bytes` in float32 and overwritten in place: by log-probs in the forward
pass, by their own gradient in the backward pass. The last chunk is kept for the backward pass, the others are
recomputed there: what fits into one chunk is computed once, and memory for logits does not grow with the vocabulary.

Legend: N completion tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alphapo_cli.modeling.layout.numbers import device_type, has_numbers
from alphapo_cli.modeling.logprobs import TokenStatistics, log_softmax_at

CHUNK_BYTES = 64 << 20
_BLOCK = 1 << 18  # elements processed at a time on the CPU, about a core's cache


@dataclass(frozen=True)
class Head:
    """The map from hidden states [N, H] to logits [N, V]: a linear layer, a factor, then cap * tanh(logits / cap)."""

    linear: nn.Module
    factor: float = 1.0
    cap: float | None = None
    # Whether the weights' gradient is summed over chunks in float32 whatever their dtype is. Of a sharded model they are
    # gathered in a narrow one, while its gradients are wide.
    wide_gradient: bool = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H]."""
        logits: Tensor = self.linear(hidden)
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @property
    def matrix(self) -> nn.Parameter | None:
        """The weights [V, H] of a plain linear layer; None if it has a bias or an adapter."""
        plain = type(self.linear) is nn.Linear and self.linear.bias is None
        return self.linear.weight if plain else None  # type: ignore[return-value]


def chunks(rows: int, width: int, chunk_bytes: int) -> list[int]:
    """Return the rows of each chunk, for `rows` rows of `width` float32 numbers in chunks of at most `chunk_bytes`.

    The remainder comes first: the last chunk is the one that is not recomputed, so it is to be a full one.
    """
    size = max(1, chunk_bytes // (width * 4))
    return [n for n in (rows % size, *[size] * (rows // size)) if n]


def token_log_probs(hidden: Tensor, targets: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Log-probs of `targets` [N] under `head(hidden)`, hidden [N, H]: [N] nats, float32 or wider."""
    return log_probs_and_statistics(hidden, targets, head, chunk_bytes=chunk_bytes, statistics=False)[0]


def log_probs_and_statistics(
    hidden: Tensor, targets: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES, statistics: bool = True
) -> tuple[Tensor, TokenStatistics | None]:
    """Log-probs as `token_log_probs` has them, and statistics [N] without gradient if wanted, from the same logits."""
    matrix = head.matrix
    if matrix is not None:
        out: tuple[Tensor, Tensor, Tensor] = _LogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, matrix, targets, head, chunk_bytes, statistics
        )
        return out[0], TokenStatistics(out[1], out[2]) if statistics else None
    # Without tokens one empty chunk, whose log-probs still belong to the graph.
    sizes = chunks(len(targets), head(hidden[:1]).shape[-1], chunk_bytes) or [0]
    parts, collected = [], []
    for h, t in zip(hidden.split(sizes), targets.split(sizes), strict=True):
        recompute = torch.is_grad_enabled() and len(sizes) > 1
        parts.append(checkpoint(_logp_at, head, h, t, use_reentrant=False) if recompute else _logp_at(head, h, t))
        if statistics:
            collected.append(_statistics(head(h.detach()).detach()))
    if not statistics:
        return torch.cat(parts), None
    return torch.cat(parts), TokenStatistics(*(torch.cat(column) for column in zip(*collected, strict=True)))


def _logp_at(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return log_softmax_at(head(hidden), targets)


def _statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    logp = _to_float32(logits).log_softmax(-1)
    p = logp.exp()
    return _entropy(p, logp), (p * p).sum(-1)


def _entropy(p: Tensor, logp: Tensor) -> Tensor:
    """Entropy of each row of p = e^logp, nats; 0 log 0 is 0, so a log-prob of -inf becomes finite."""
    return -(p * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def _kl_of(p: Tensor, difference: Tensor) -> Tensor:
    """Mean under each row of p of a difference of log-probs, where what has probability 0 counts as 0."""
    return (p * difference.where(p > 0, 0.0)).sum(-1)


@torch.no_grad()
def observe(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    described: int,
    start: tuple[Tensor, Head] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (log-probs [N], entropy [M], KL(now || start) [M]) in nats; the last two of the first M = `described`.

    Without gradient. `start` holds hidden states [M, H] of these rows at step 0 and the output layer of then; else the
    KL is 0. To keep hidden states instead of distributions [M, V] makes the exact KL affordable: no second pass through
    the model, and nothing of vocabulary size is stored.
    """
    width = head(hidden[:1]).shape[-1] if len(hidden) else 1
    sizes = chunks(len(hidden), width, chunk_bytes)  # as in training, so that both round alike
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logps, entropy, kl = (hidden.new_zeros(n, dtype=wide) for n in (len(hidden), described, described))
    buffer, start_buffer = (hidden.new_empty(max(sizes, default=0), width, dtype=wide) for _ in range(2))
    for begin, size in _offsets(sizes):
        logits = _logits(head, hidden[begin : begin + size], buffer)
        start_logits = None if start is None else _logits(start[1], start[0][begin : begin + size], start_buffer)
        for block in _blocks(logits):
            first = begin + block.start
            logp = logits[block].log_softmax(-1)
            last = first + len(logp)
            logps[first:last] = logp.gather(1, targets[first:last].unsqueeze(1)).squeeze(1)
            if first >= described:
                continue
            rows, logp = slice(first, min(last, described)), logp[: described - first]
            p = logp.exp()
            entropy[rows] = _entropy(p, logp)
            if start_logits is not None:
                kl[rows] = _kl_of(p, logp - start_logits[block].log_softmax(-1))
    return logps, entropy, kl


def _logits(head: Head, hidden: Tensor, buffer: Tensor) -> Tensor:
    """Compute head(hidden), float32 or wider, by the operations of training; `buffer` may be written to."""
    matrix = head.matrix
    if matrix is None:
        return _to_float32(head(hidden))
    device = hidden.device.type
    dtype = _matmul_dtype(hidden)
    with torch.autocast(device, enabled=False):
        return _write_logits(buffer[: len(hidden)], hidden.to(dtype), matrix.to(dtype), head.factor, head.cap)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that matrix products of `hidden` run in: that of autocast, or its own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def kl_from(
    start_hidden: Tensor, start_head: Head, hidden: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return KL(start || now) of the distributions from hidden states [N, H], [N] nats, float32 or wider.

    The gradient goes to now alone. Both logits of a chunk are recomputed in the backward pass, so that memory does not
    grow with the vocabulary.
    """
    width = head(hidden[:1]).shape[-1] if len(hidden) else 1
    sizes = chunks(len(hidden), width, chunk_bytes // 2)
    parts = []
    for start, now in zip(start_hidden.split(sizes), hidden.split(sizes), strict=True):
        recompute = torch.is_grad_enabled()
        arguments = (start_head, start, head, now)
        parts.append(checkpoint(_kl, *arguments, use_reentrant=False) if recompute else _kl(*arguments))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _kl(start_head: Head, start_hidden: Tensor, head: Head, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        start_logp = _to_float32(start_head(start_hidden)).log_softmax(-1)
    return _kl_of(start_logp.exp(), start_logp - _to_float32(head(hidden)).log_softmax(-1))


def _to_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows of `logits` [n, V]: on the CPU what stays in a core's cache, elsewhere all rows at once."""
    rows, width = logits.shape
    step = max(1, _BLOCK // width) if device_type(logits) == "cpu" else max(1, rows)
    starts: Sequence[int] = range(0, rows, step)
    if not has_numbers(logits) and len(starts) > 3:  # the others take as much memory as the second one
        starts = [*starts[:2], starts[-1]]
    return (slice(i, min(i + step, rows)) for i in starts)


class _LogProbs(torch.autograd.Function):
    """Log-probs [N], entropy [N] and sum p^2 [N] from hidden [N, H] and weights [V, H]; the last two have no gradient.

    With z = factor * hidden @ weight.T and u = cap * tanh(z / cap), the gradient g of the log-prob of target y goes to
    z as g * (1[y] - softmax(u)) * (1 - (u / cap)^2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        head: Head,
        chunk_bytes: int,
        statistics: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device, factor, cap = hidden.device.type, head.factor, head.cap
        dtype = _matmul_dtype(hidden)
        sizes = chunks(len(hidden), len(weight), chunk_bytes)
        wide = torch.promote_types(dtype, torch.float32)
        logps, entropy, sum_p2, norm = (torch.empty(len(hidden), dtype=wide, device=hidden.device) for _ in range(4))
        logits = torch.empty(max(sizes, default=0), len(weight), dtype=wide, device=hidden.device)
        with torch.autocast(device, enabled=False):
            narrow, matrix = hidden.to(dtype), weight.to(dtype)
            for start, size in _offsets(sizes):
                rows = slice(start, start + size)
                part = _write_logits(logits[:size], narrow[rows], matrix, factor, cap)
                for block in _blocks(part):
                    at = slice(start + block.start, start + block.stop)
                    logp = part[block].log_softmax(-1)
                    norm[at] = part[block].amax(-1) - logp.amax(-1)  # at the largest logit: no cancellation
                    if statistics:
                        p = logp.exp()
                        entropy[at] = _entropy(p, logp)
                        sum_p2[at] = (p * p).sum(-1)
                    part[block] = logp
                logps[rows] = part.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
        total = torch.promote_types(weight.dtype, torch.float32) if head.wide_gradient else weight.dtype
        ctx.settings = (factor, cap, dtype, sizes, total)
        ctx.logits = logits  # log-probs of the last chunk
        ctx.save_for_backward(hidden, weight, targets, norm)
        ctx.mark_non_differentiable(entropy, sum_p2)
        ctx.set_materialize_grads(False)
        return logps, entropy, sum_p2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norm = ctx.saved_tensors
        factor, cap, dtype, sizes, total = ctx.settings
        logits, ctx.logits = ctx.logits, None
        if grad is None:
            return (None,) * 6
        kept = logits is not None  # None in a second backward pass through a retained graph
        if logits is None:
            logits = torch.empty(max(sizes, default=0), len(weight), dtype=norm.dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight: Tensor | None = None
        with torch.autocast(hidden.device.type, enabled=False):
            narrow, matrix = hidden.to(dtype), weight.to(dtype)
            for start, size in reversed(list(_offsets(sizes))):
                rows = slice(start, start + size)
                part = logits[:size]
                if not kept:
                    _write_logits(part, narrow[rows], matrix, factor, cap)
                for block in _blocks(part):
                    at = slice(start + block.start, start + block.stop)
                    _to_gradient(part[block], kept, norm[at, None], targets[at, None], grad[at, None], cap)
                kept = False
                step = (part.mul_(factor) if factor != 1.0 else part).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = step @ matrix
                if ctx.needs_input_grad[1]:
                    grad_weight = _accumulate(grad_weight, step, narrow[rows], total)
        if ctx.needs_input_grad[1] and grad_weight is None:  # no tokens
            grad_weight = torch.zeros_like(weight)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _to_gradient(x: Tensor, is_logp: bool, norm: Tensor, targets: Tensor, grad: Tensor, cap: float | None) -> None:
    """Overwrite x [n, V], log-probs or (capped) logits, with the gradient of the logits before the cap."""
    if not is_logp:
        x.sub_(norm)
    slope = None if cap is None else 1 - ((x + norm) / cap).square_()
    x.exp_().mul_(-grad).scatter_add_(1, targets, grad)
    if slope is not None:
        x.mul_(slope)


def _offsets(sizes: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        yield start, size
        start += size


def _write_logits(logits: Tensor, hidden: Tensor, matrix: Tensor, factor: float, cap: float | None) -> Tensor:
    """Write the logits of `hidden` [n, H] into `logits` [n, V], which may be of a wider dtype."""
    if hidden.dtype == logits.dtype:
        torch.mm(hidden, matrix.t(), out=logits)
    else:
        logits.copy_(hidden @ matrix.t())
    if factor != 1.0:
        logits.mul_(factor)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _accumulate(total: Tensor | None, step: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Add step.T @ hidden to `total`, in place; None counts as zeros of `dtype`."""
    if total is None:
        return (step.t() @ hidden).to(dtype)
    if total.dtype == step.dtype:
        return total.addmm_(step.t(), hidden)
    return total.add_(step.t() @ hidden)

"""Where probability went: next-token distributions now against step 0, at single positions of chosen answers.

At every position gains and losses over the vocabulary sum to 0. They are computed in float64 from the logits of both
models, some rows at a time, so that nothing of the size [positions, vocabulary] is ever held.

Legend: M positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from alphapo_cli.modeling.lm_head import CHUNK_BYTES, Head

TOP = 10  # tokens whose probability, entropy and gains are reported
_COPIES = 8  # of a row of float32 logits that are held at a time: two distributions in float64, difference, workspace


@dataclass(frozen=True)
class Positions:
    """M positions at which both models' distributions are compared."""

    hidden: Tensor  # [M, H] now
    start: Tensor  # [M, H] at step 0
    target: Tensor  # [M] int64, the chosen answer's token
    rejected: Tensor  # [M] int64, the rejected answer's token in the same context; -1: its context is another one


@dataclass(frozen=True)
class Moved:
    """What moved at M positions; probabilities, entropies in nats. `moved` = `to_rejected` + `to_end` + `to_other`."""

    moved: Tensor  # [M] sum of all gains, which is that of all losses
    to_rejected: Tensor  # [M] gained by the rejected answer's token
    to_end: Tensor  # [M] gained by end tokens
    to_other: Tensor  # [M] gained by all other tokens
    to_neither: Tensor  # [M] change of the probability of all tokens but the chosen answer's and the rejected answer's
    residual: Tensor  # [M] gains plus losses, 0 but for rounding
    top10: Tensor  # [M] probability of the ten likeliest tokens now
    top10_change: Tensor  # [M] that, minus the probability of the ten likeliest tokens of step 0 then
    top10_entropy: Tensor  # [M] sum over the ten likeliest of -p log p (2410.11677)
    top10_entropy_change: Tensor  # [M]
    likeliest_changed: Tensor  # [M] 1 where the likeliest token is another one
    chosen_left_top10: Tensor  # [M] 1 where the target was among the ten likeliest at step 0 and is not now
    gainers: Tensor  # [M, TOP] int64, the tokens that gained most, in order
    gains: Tensor  # [M, TOP] what they gained, negative where fewer tokens gained anything


@torch.no_grad()
def moved_mass(
    at: Positions, head: Head, start_head: Head, end_ids: Sequence[int], *, chunk_bytes: int = CHUNK_BYTES
) -> Moved:
    """Compare the distributions of both models at M positions.

    Args:
        at: the positions.
        head: the output layer now.
        start_head: the output layer at step 0, of the same vocabulary.
        end_ids: ids of tokens that end an answer.
        chunk_bytes: memory that distributions may take at a time.

    Returns:
        What moved, float64 on the CPU.
    """
    width = head(at.hidden[:1]).shape[-1] if len(at.hidden) else 1
    parts = []
    for rows in _blocks(len(at.hidden), max(1, chunk_bytes // (width * 4 * _COPIES))):
        now, before = (
            layer(states[rows]).double().softmax(-1) for layer, states in ((head, at.hidden), (start_head, at.start))
        )
        parts.append(_compared(now, before, at.target[rows], at.rejected[rows], end_ids))
    if not parts:
        nothing = torch.zeros(0, TOP, dtype=torch.float64)
        return _compared(nothing, nothing, at.target, at.rejected, ())
    return Moved(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Moved)})


def _blocks(rows: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _compared(now: Tensor, before: Tensor, target: Tensor, rejected: Tensor, end_ids: Sequence[int]) -> Moved:
    """Compare distributions [m, V]."""
    change = now - before
    gain = change.clamp(min=0)
    moved = gain.sum(-1)
    top = min(TOP, now.shape[-1])
    # A gain counts once: that of an end token which is the rejected answer's is the rejected answer's.
    known = rejected >= 0
    to_rejected = torch.where(known, gain.gather(-1, rejected.clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
    ends = torch.tensor(sorted(set(end_ids)), dtype=torch.int64, device=now.device)
    counted = (ends.unsqueeze(0) != rejected.unsqueeze(-1)).double()
    to_end = (gain[:, ends] * counted).sum(-1)
    tops = [p.topk(top, dim=-1) for p in (now, before)]
    mass, mass_before = (values.sum(-1) for values, _ in tops)
    entropy, entropy_before = (-torch.xlogy(values, values).sum(-1) for values, _ in tops)
    among, among_before = ((ids == target.unsqueeze(-1)).any(-1) for _, ids in tops)
    gains, gainers = change.topk(top, dim=-1)
    found = {
        "moved": moved,
        "to_rejected": to_rejected,
        "to_end": to_end,
        "to_other": moved - to_rejected - to_end,
        "to_neither": -change.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        - torch.where(
            known & (rejected != target), change.gather(-1, rejected.clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0
        ),
        "residual": change.sum(-1),
        "top10": mass,
        "top10_change": mass - mass_before,
        "top10_entropy": entropy,
        "top10_entropy_change": entropy - entropy_before,
        "likeliest_changed": (tops[0][1][:, 0] != tops[1][1][:, 0]).double(),
        "chosen_left_top10": (among_before & ~among).double(),
        "gainers": gainers,
        "gains": gains,
    }
    return Moved(**{name: values.cpu() for name, values in found.items()})

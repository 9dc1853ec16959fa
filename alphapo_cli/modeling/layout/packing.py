"""Which position of a packed row attends to which: the segments of a row, and masks made from them when asked for.

A row is one pair after another. A pair is

    [ shared | own 0 | own 1 | ... ]

the tokens that all its answers begin with (the prompt, and what the answers have in common), then what only one answer
has, for each answer. All answers see `shared`; none sees another; no pair sees another pair. Positions count within
each answer, so every part of its own begins where `shared` ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Lengths of one pair. The longest of `own` stands first: the longest answer needs no mask of its own."""

    shared: int
    own: tuple[int, ...]
    unread: int  # leading positions whose last hidden state predicts no completion token: all but the prompt's last

    @property
    def length(self) -> int:
        return self.shared + sum(self.own)


@dataclass(frozen=True)
class Packing:
    """The pairs of a row of T positions, K of which (`rows`) predict completion tokens."""

    segments: tuple[Segment, ...]
    rows: Tensor  # [K] int64, rising
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> Packing:
        """The same with its tensor on `device`."""
        return Packing(self.segments, self.rows.to(device, non_blocking=True))

    def causal(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """Mask [queries, keys] for queries that are the last of `keys` positions; None where `is_causal` says it all."""
        window = None if window is None or window >= keys else window
        if queries == keys and window is None:
            return None
        place = ("causal", queries, keys, window, device)
        if place not in self._masks:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            if window is not None:
                mask = mask.triu(keys - queries - window + 1)
            self._masks[place] = mask
        mask = self._masks[place]
        assert isinstance(mask, Tensor)
        return mask

    def block_mask(self, pruned: bool, window: int | None, device: torch.device) -> Any:
        """FlexAttention's mask of the whole row; `pruned`: its queries are `rows` only."""
        from torch.nn.attention.flex_attention import create_block_mask

        place = ("block", pruned, window, device)
        if place not in self._masks:
            pair, part, position = (x.to(device) for x in self.coordinates())
            queries = self.rows if pruned else torch.arange(len(pair), device=device)

            def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                q = queries[query]
                seen = (pair[q] == pair[key]) & ((part[key] == 0) | (part[key] == part[q]))
                distance = position[q] - position[key]
                near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
                return seen & near

            self._masks[place] = create_block_mask(
                visible, None, None, len(queries), len(pair), device=device, _compile=device.type == "cuda"
            )
        return self._masks[place]

    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """(pair, part, position) of each of the T positions, int64; part 0 is shared, the others follow in order."""
        pair, part, position = [], [], []
        for i, s in enumerate(self.segments):
            pair.append(torch.full((s.length,), i))
            lengths = torch.tensor([s.shared, *s.own])
            part.append(torch.repeat_interleave(torch.arange(len(lengths)), lengths))
            position += [torch.arange(s.shared), *(torch.arange(s.shared, s.shared + n) for n in s.own)]
        return torch.cat(pair), torch.cat(part), torch.cat(position)

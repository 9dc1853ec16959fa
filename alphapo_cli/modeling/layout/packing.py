"""Which positions of a packed row attend to which: the segments of a row, and masks made from them on demand.

A row is one pair after another. A pair is

    [ shared | own 0 | own 1 | ... ]

first the prefix that all its answers share (the prompt, and the beginning that the answers have in common), then the
rest of each answer. Every answer attends to `shared` and itself, to no other answer and no other pair. Position ids
count within each answer, so every `own` part starts where `shared` ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Lengths of one pair's parts. The longest of `own` is first: the longest answer needs no mask of its own."""

    shared: int
    own: tuple[int, ...]
    unread: int  # leading positions that predict no completion token: all of the prompt but its last

    @property
    def length(self) -> int:
        """Positions of the pair."""
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
        """Causal mask for queries that are the last `queries` of `keys` positions.

        Args:
            queries: number of queries.
            keys: number of keys.
            window: keys that a query sees at most; None: all before it.
            device: device of the mask.

        Returns:
            [queries, keys] bool, true where a query sees a key; None if `is_causal` alone says as much.
        """
        window = None if window is None or window >= keys else window
        if queries == keys and window is None:
            return None
        mask_key = ("causal", queries, keys, window, device)
        if mask_key not in self._masks:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            if window is not None:
                mask = mask.triu(keys - queries - window + 1)
            self._masks[mask_key] = mask
        mask = self._masks[mask_key]
        assert isinstance(mask, Tensor)
        return mask

    def block_mask(self, pruned: bool, window: int | None, device: torch.device) -> Any:
        """FlexAttention's block mask of the whole row; `pruned`: its queries are `rows` only."""
        from torch.nn.attention.flex_attention import create_block_mask

        mask_key = ("block", pruned, window, device)
        if mask_key not in self._masks:
            pair, part, position = (x.to(device) for x in self.coordinates())
            queries = self.rows if pruned else torch.arange(len(pair), device=device)

            def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                q = queries[query]
                seen = (pair[q] == pair[key]) & ((part[key] == 0) | (part[key] == part[q]))
                distance = position[q] - position[key]
                near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
                return seen & near

            self._masks[mask_key] = create_block_mask(
                visible, None, None, len(queries), len(pair), device=device, _compile=device.type == "cuda"
            )
        return self._masks[mask_key]

    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (pair, part, position) of each of the T positions, int64; part 0 is shared, the own parts follow."""
        pair, part, position = [], [], []
        for i, s in enumerate(self.segments):
            pair.append(torch.full((s.length,), i))
            lengths = torch.tensor([s.shared, *s.own])
            part.append(torch.repeat_interleave(torch.arange(len(lengths)), lengths))
            position += [torch.arange(s.shared), *(torch.arange(s.shared, s.shared + n) for n in s.own)]
        return torch.cat(pair), torch.cat(part), torch.cat(position)

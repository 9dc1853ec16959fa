"""Which position of a packed row attends to which: the segments of a row, and masks made from them when asked for.

A row is one pair after another. A pair is

    [ shared | first | second ]

the tokens that both answers begin with (the prompt, and what the answers have in common), then what only one answer
has, then what only the other has. Both answers see `shared`; neither sees the other; no pair sees another pair.
Positions count within each answer, so `second` begins again where `shared` ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Lengths of one pair. `first` is at least `second`: the longer answer needs no mask of its own."""

    shared: int
    first: int
    second: int
    unread: int  # leading positions whose last hidden state predicts no completion token: all but the prompt's last

    @property
    def length(self) -> int:
        return self.shared + self.first + self.second


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
        """(pair, part, position) of each of the T positions, int64; parts are 0 shared, 1 first, 2 second."""
        pair, part, position = [], [], []
        for i, s in enumerate(self.segments):
            pair.append(torch.full((s.length,), i))
            part.append(torch.repeat_interleave(torch.arange(3), torch.tensor([s.shared, s.first, s.second])))
            position += [torch.arange(s.shared + s.first), torch.arange(s.shared, s.shared + s.second)]
        return torch.cat(pair), torch.cat(part), torch.cat(position)

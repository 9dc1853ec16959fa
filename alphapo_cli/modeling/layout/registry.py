"""How the pairs of a micro-batch become model input: `padded` or `packed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alphapo_cli.data.token_pairs import Index, TokenPairs
from alphapo_cli.modeling.layout import packed, padded
from alphapo_cli.modeling.layout.batch import PairBatch


@dataclass(frozen=True)
class Layout:
    """A way to lay pairs out.

    `positions(pairs, sides)`: [n] positions that each pair takes. `as_widest`: in a micro-batch each takes as many as
    the one that takes most.
    """

    name: str
    collate: Callable[..., PairBatch]
    positions: Callable[[TokenPairs, int], Index]
    as_widest: bool


LAYOUTS = {
    "padded": Layout("padded", padded.collate, padded.positions, as_widest=True),
    "packed": Layout("packed", packed.collate, packed.positions, as_widest=False),
}

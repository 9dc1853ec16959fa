"""The layouts in which pairs of a micro-batch become model input: `padded` and `packed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alphapo_cli.data.token_pairs import Index, TokenPairs
from alphapo_cli.modeling.layout import packed, padded
from alphapo_cli.modeling.layout.batch import PairBatch


@dataclass(frozen=True)
class Layout:
    """A layout of pairs.

    Attributes:
        name: value of the setting `layout`.
        collate: pairs to a batch, see `padded.collate`.
        positions: (pairs, sides) to the positions that each pair takes, [n].
        as_widest: whether each pair of a micro-batch takes as many positions as its largest one.
    """

    name: str
    collate: Callable[..., PairBatch]
    positions: Callable[[TokenPairs, int], Index]
    as_widest: bool


LAYOUTS = {
    "padded": Layout("padded", padded.collate, padded.positions, as_widest=True),
    "packed": Layout("packed", packed.collate, packed.positions, as_widest=False),
}

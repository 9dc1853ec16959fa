"""How many pairs of each source train under `data.weights`.

The largest mixture with these shares that trains no pair twice: the source with the fewest pairs for its weight trains
whole, of the others the pairs with the smallest content hashes, whatever the order of the files and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alphapo_cli.data.token_pairs import Index


def weighted(
    positions: Sequence[int], source: Index, content_keys: Sequence[str], weights: Sequence[float]
) -> list[int]:
    """Select training pairs by weight.

    Args:
        positions: indices of the training pairs.
        source: [n] the source of every pair.
        content_keys: [n] content hashes.
        weights: one for each source, above 0; their sum is of no matter.

    Returns:
        The indices that train, in the order of `positions`, at least one of each source that has any.
    """
    members = [[p for p in positions if source[p] == number] for number in range(len(weights))]
    total = min(len(own) / weight for own, weight in zip(members, weights, strict=True) if own)
    kept: set[int] = set()
    for own, weight in zip(members, weights, strict=True):
        count = min(len(own), max(1, int(np.floor(total * weight + 0.5))))
        kept.update(sorted(own, key=lambda position: (content_keys[position], position))[:count])
    return [position for position in positions if position in kept]

"""`padded`: one row per answer, padded on the right. The readable reference that other layouts are tested against.

Right padding under causal attention needs no mask: a completion never looks at what follows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from alphapo_cli.data.token_pairs import Index, TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import ModelInput, PairBatch, pair_batch


def collate(
    pairs: Sequence[TokenPair],
    *,
    pad_id: int,
    weights: Sequence[float] | None = None,
    reference: Tensor | None = None,
    sides: int = 2,
) -> PairBatch:
    """Rows: all chosen answers, then all rejected ones, then those of further sides. An absent answer has no row.

    Args:
        pairs: at least one.
        pad_id: fills rows up; never seen by a completion.
        weights: one per pair; default 1.
        reference: [K, B] summed reference log-probs of these pairs.
        sides: how many answers of each pair; 1 leaves the rejected answers out.
    """
    places = [(side, i) for side in range(sides) for i, p in enumerate(pairs) if len(p.answers[side])]
    answers = [pairs[i].answers[side] for side, i in places]
    prompts = [pairs[i].prompt for _, i in places]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = np.full((len(answers), width), pad_id, dtype=np.int64)
    predict = []
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(p)] = p
        ids[row, len(p) : len(p) + len(a)] = a
        start = row * width + len(p) - 1
        predict.append(np.arange(start, start + len(a)))
    return pair_batch(ModelInput(ids, None, predict), pairs, sides, weights, reference)


def positions(pairs: TokenPairs, sides: int) -> Index:
    """[n] positions of each pair's rows, were it alone."""
    return sides * (pairs.prompt.lengths + pairs.longest(sides))

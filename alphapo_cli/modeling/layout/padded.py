"""Layout `padded`: one row per answer, padded on the right. The readable reference that tests compare layouts with.

Right padding under causal attention needs no mask: a completion never attends to what follows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from alphapo_cli.data.token_pairs import Index, TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import ModelInput, PairBatch, pair_batch


def fill_id(pad_id: int | None, tokens: int) -> int:
    """Choose the id that fills rows up.

    Padding is never read, but it is embedded; pad tokens beyond the embeddings are common.

    Args:
        pad_id: the tokenizer's, if it has one.
        tokens: rows of the model's embeddings.

    Returns:
        `pad_id` if the model knows it, else 0.
    """
    return pad_id if pad_id is not None and 0 <= pad_id < tokens else 0


def collate(
    pairs: Sequence[TokenPair],
    *,
    pad_id: int,
    weights: Sequence[float] | None = None,
    reference: Tensor | None = None,
    sides: int = 2,
) -> PairBatch:
    """Lay pairs out in rows: all chosen answers, then all rejected ones, then those of further sides.

    Args:
        pairs: at least one.
        pad_id: fills rows up; no completion attends to it.
        weights: one per pair; None: 1 each.
        reference: [K, B] summed reference log-probs of these pairs, nats.
        sides: answers of each pair, K; 1 leaves the rejected answers out.

    Returns:
        The batch; an absent answer has no row.
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
    """Positions that each pair's rows would take alone, [n]."""
    return sides * (pairs.prompt.lengths + pairs.longest(sides))

"""Layout `packed` (the default): all pairs of a micro-batch in one row without padding, each prompt encoded once.

The common prefix of a pair's token sequences is shared, wherever the texts divide: a prompt that the answers tokenise
differently at its end is shared up to there, and answers that begin alike share their beginning. The last token of an
answer predicts nothing and is left out of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import Index, TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import ModelInput, PairBatch, pair_batch
from alphapo_cli.modeling.layout.packing import Packing, Segment


def collate(
    pairs: Sequence[TokenPair],
    *,
    pad_id: int,
    weights: Sequence[float] | None = None,
    reference: Tensor | None = None,
    sides: int = 2,
) -> PairBatch:
    """Lay pairs out in one row, pair after pair; see `Packing` for the order within a pair.

    Args:
        pairs: at least one.
        pad_id: not used, nothing is padded.
        weights: one per pair; None: 1 each.
        reference: [K, B] summed reference log-probs of these pairs, nats.
        sides: answers of each pair, K; 1 leaves the rejected answers out.

    Returns:
        The batch; `predict` counts the rows that the last layer keeps (`Packing.rows`).
    """
    answers = [p.answers[side] for side in range(sides) for p in pairs]
    segments, ids, positions, rows = [], [], [], []
    predict: list[npt.NDArray[np.int64]] = [np.arange(len(answer)) for answer in answers]
    start = kept = 0
    for i, pair in enumerate(pairs):
        inputs = [answer[:-1] for answer in answers[i :: len(pairs)]]
        common = min(common_prefix(inputs[0], other) for other in inputs)
        shared = len(pair.prompt) + common
        own = [len(tokens) - common for tokens in inputs]
        order = sorted(range(sides), key=lambda side: -own[side])
        unread = len(pair.prompt) - 1
        segment = Segment(shared, tuple(own[side] for side in order), unread)
        segments.append(segment)
        ids += [pair.prompt, inputs[0][:common], *(inputs[side][common:] for side in order)]
        positions += [np.arange(shared), *(np.arange(shared, shared + own[side]) for side in order)]
        rows.append(np.arange(start + unread, start + segment.length))
        before = 0  # own positions of other answers that precede this answer's
        for side in order:
            at = predict[side * len(pairs) + i]  # token t of an answer is predicted at position unread + t
            at += kept
            at[common + 1 :] += before
            before += own[side]
        start += segment.length
        kept += segment.length - unread
    packing = Packing(tuple(segments), torch.from_numpy(np.concatenate(rows)))
    laid = ModelInput(_row(ids), _row(positions), predict, packing)
    return pair_batch(laid, pairs, sides, weights, reference)


def positions(pairs: TokenPairs, sides: int) -> Index:
    """Positions of each pair, [n], at most: a prefix that only the answers have in common counts for each."""
    inputs = [np.maximum(side.lengths - 1, 0) for side in pairs.answers[:sides]]
    total: Index = pairs.prompt.lengths + np.sum(inputs, axis=0)
    return total


def common_prefix(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Length of the common prefix of two sequences of ids."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _row(parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.int64]:
    """Concatenate into one row [1, T]."""
    row: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)[None]
    return row

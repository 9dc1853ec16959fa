"""`packed` (the default): all pairs of a micro-batch in one row without padding, each prompt encoded once.

What the token sequences of a pair have in common from the start is shared, whatever the texts say: a prompt that
the answers tokenise differently at its end is shared up to there, and answers that begin alike share their beginning.
The last token of an answer predicts nothing and is left out of the input.
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
    """One row, pair after pair; see `Packing` for the order within a pair, `padded.collate` for the arguments.

    `predict` counts the rows that the last layer keeps (`Packing.rows`). Nothing is padded, so `pad_id` is not used.
    """
    answers = [p.answers[side] for side in range(sides) for p in pairs]
    segments, ids, positions, rows = [], [], [], []
    predict: list[npt.NDArray[np.int64]] = [np.arange(len(answer)) for answer in answers]
    begin = kept = 0
    for i, pair in enumerate(pairs):
        inputs = [answer[:-1] for answer in answers[i :: len(pairs)]]
        alike = min(common_prefix(inputs[0], other) for other in inputs)
        shared = len(pair.prompt) + alike
        own = [len(tokens) - alike for tokens in inputs]
        order = sorted(range(sides), key=lambda side: -own[side])
        unread = len(pair.prompt) - 1
        segment = Segment(shared, tuple(own[side] for side in order), unread)
        segments.append(segment)
        ids += [pair.prompt, inputs[0][:alike], *(inputs[side][alike:] for side in order)]
        positions += [np.arange(shared), *(np.arange(shared, shared + own[side]) for side in order)]
        rows.append(np.arange(begin + unread, begin + segment.length))
        before = 0  # what other answers have of their own, ahead of this one's
        for side in order:
            at = predict[side * len(pairs) + i]  # token t of an answer is predicted at position unread + t
            at += kept
            at[alike + 1 :] += before
            before += own[side]
        begin += segment.length
        kept += segment.length - unread
    packing = Packing(tuple(segments), torch.from_numpy(np.concatenate(rows)))
    laid = ModelInput(_row(ids), _row(positions), predict, packing)
    return pair_batch(laid, pairs, sides, weights, reference)


def positions(pairs: TokenPairs, sides: int) -> Index:
    """[n] positions of each pair, at most: what answers begin with in common is counted for each."""
    inputs = [np.maximum(side.lengths - 1, 0) for side in pairs.answers[:sides]]
    total: Index = pairs.prompt.lengths + np.sum(inputs, axis=0)
    return total


def common_prefix(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many ids two sequences have in common from the start."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _row(parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.int64]:
    """[1, T]."""
    row: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)[None]
    return row

"""`padded`: one row per answer, padded on the right. The readable reference that other layouts are tested against.

Right padding under causal attention needs no mask: a completion never looks at what follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import Index, Logs, TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch


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
    predict, answer = [], []
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(p)] = p
        ids[row, len(p) : len(p) + len(a)] = a
        start = row * width + len(p) - 1
        predict.append(np.arange(start, start + len(a)))
        side, i = places[row]
        answer.append(np.full(len(a), side * len(pairs) + i))
    return PairBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=None,
        position_ids=None,
        predict=torch.from_numpy(np.concatenate(predict)),
        targets=torch.from_numpy(np.concatenate(answers).astype(np.int64)),
        answer=torch.from_numpy(np.concatenate(answer)),
        num_pairs=len(pairs),
        num_sides=sides,
        index=torch.tensor([p.index for p in pairs]),
        weight=torch.tensor(weights if weights is not None else [1.0] * len(pairs)),
        reference=None if reference is None else reference[:sides],
        columns=stack_columns([p.columns for p in pairs]),
        present=presence(pairs, sides),
        guide=guide_of([pairs[i].guide[side] for side, i in places if pairs[i].guide]),
    ).trained([pairs[i].turns[side] for side, i in places if pairs[i].turns])


def positions(pairs: TokenPairs, sides: int) -> Index:
    """[n] positions of each pair's rows, were it alone."""
    return sides * (pairs.prompt.lengths + pairs.longest(sides))


def presence(pairs: Sequence[TokenPair], sides: int) -> Tensor | None:
    """[K, B] whether each row has each answer; None where none is absent."""
    there = torch.tensor([[len(p.answers[side]) > 0 for p in pairs] for side in range(sides)])
    return None if bool(there.all()) else there


def guide_of(values: Sequence[Logs]) -> Tensor | None:
    """[N] what a guide model says of each token, answer after answer; None where there is no guide."""
    return torch.from_numpy(np.concatenate(values)) if values else None


def stack_columns(columns: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Per-pair numbers as one tensor [B] a name; only names that every pair has."""
    names = set(columns[0]).intersection(*columns[1:]) if columns else set()
    return {name: torch.tensor([c[name] for c in columns], dtype=torch.float64) for name in sorted(names)}

"""What a layout makes of a micro-batch of pairs: model input, and a record of the completion tokens.

Legend: R rows, T positions, N completion tokens, B pairs, K sides (chosen first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPair
from alphapo_cli.modeling.layout.packing import Packing

T = TypeVar("T")


@dataclass(frozen=True)
class CompletionTokens:
    """The completion tokens of a micro-batch, answer after answer, with all that is known of each but its log-prob."""

    ids: Tensor  # [N] int64
    answer: Tensor  # [N] int64, side * num_pairs + pair
    num_pairs: int
    num_sides: int
    present: Tensor | None = None  # [K, B] bool, whether the row has the answer; None: every row has every one
    turn: Tensor | None = None  # [N] int64, which turn of its answer a token belongs to; None: answers are one turn
    guide: Tensor | None = None  # [N] float32, nats, log-ratio of a guide model to the reference

    @property
    def pair(self) -> Tensor:
        """[N] the pair that each token belongs to."""
        return self.answer % self.num_pairs

    @property
    def side(self) -> Tensor:
        """[N] 0 chosen, 1 rejected, and so on."""
        return self.answer // self.num_pairs

    @property
    def position(self) -> Tensor:
        """[N] place of each token in its answer, from 0; an answer's tokens stand together and in order."""
        lengths = torch.bincount(self.answer, minlength=self.num_sides * self.num_pairs)
        starts = lengths.cumsum(0) - lengths
        return torch.arange(len(self.answer), device=self.answer.device) - starts[self.answer]

    def sum_over(self, values: Tensor) -> Tensor:
        """Sum of per-token `values` [N] per answer: [K, B] float64.

        Two sums of -1,000 nats in float32 are each off by 3e-5, which a log-ratio, their small difference, carries
        whole, and a loss with a steep link multiplies. Wide sums of float32 values avoid it for two numbers a pair.
        """
        total = torch.zeros(self.num_sides * self.num_pairs, dtype=torch.float64, device=values.device)
        return total.index_add(0, self.answer, values.double()).view(self.num_sides, self.num_pairs)

    def select(self, kept: Tensor) -> CompletionTokens:
        """The tokens where `kept` [N] is true."""
        return replace(
            self, ids=self.ids[kept], answer=self.answer[kept], turn=None if self.turn is None else self.turn[kept],
            guide=None if self.guide is None else self.guide[kept],
        )  # fmt: skip


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of pairs as model input.

    Hidden state `predict[i]` (an index into the flattened [R * T] positions, or into the rows that `packing` keeps)
    predicts completion token i of `tokens`. Where the prompt is shared, all sides' first tokens are predicted from the
    same position, which then occurs once for each.
    """

    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor | None  # [R, T]; None: each row counts from 0
    predict: Tensor  # [N] int64
    tokens: CompletionTokens
    index: Tensor  # [B] int64, position of the pair in its data set
    weight: Tensor  # [B] float32, 1 for a pair and 0 for one that only fills up a ragged step
    reference: Tensor | None  # [K, B] float64, summed reference log-probs
    columns: Mapping[str, Tensor]  # name -> [B] float64
    packing: Packing | None = None  # who attends to whom in a packed row; None: rows are single answers

    @property
    def num_pairs(self) -> int:
        """B."""
        return self.tokens.num_pairs

    @property
    def num_sides(self) -> int:
        """K."""
        return self.tokens.num_sides

    def to(self, device: torch.device) -> PairBatch:
        """The same batch with its tensors on `device`."""
        return _to(self, device)


@dataclass(frozen=True)
class ModelInput:
    """The rows of a micro-batch, as a layout lays them out."""

    input_ids: npt.NDArray[np.int64]  # [R, T]
    position_ids: npt.NDArray[np.int64] | None  # [R, T]
    predict: Sequence[npt.NDArray[np.int64]]  # of each answer that is there, in order of sides: [its tokens]
    packing: Packing | None = None


def pair_batch(
    rows: ModelInput, pairs: Sequence[TokenPair], sides: int, weights: Sequence[float] | None, reference: Tensor | None
) -> PairBatch:
    """The batch of `pairs` laid out as `rows`, without the tokens of several turns that are read and not trained.

    Args:
        rows: of the first `sides` answers.
        pairs: B of them.
        sides: K.
        weights: one per pair; None: 1 each.
        reference: [at least K, B] summed reference log-probs.
    """
    places = [(k, i) for k in range(sides) for i, pair in enumerate(pairs) if len(pair.answers[k])]
    lengths = [len(pairs[i].answers[k]) for k, i in places]
    present = torch.tensor([[len(pair.answers[k]) > 0 for pair in pairs] for k in range(sides)])
    turns = [pairs[i].turns[k] for k, i in places if pairs[i].turns]
    guide = [pairs[i].guide[k] for k, i in places if pairs[i].guide]
    tokens = CompletionTokens(
        ids=_joined([pairs[i].answers[k] for k, i in places]),
        answer=torch.from_numpy(np.repeat([k * len(pairs) + i for k, i in places], lengths)),
        num_pairs=len(pairs),
        num_sides=sides,
        present=None if bool(present.all()) else present,
        turn=_joined(turns) if turns else None,
        guide=torch.from_numpy(np.concatenate(guide)) if guide else None,
    )
    predict = _joined(rows.predict)
    if tokens.turn is not None:
        trained = tokens.turn >= 0
        tokens, predict = tokens.select(trained), predict[trained]
    return PairBatch(
        input_ids=torch.from_numpy(rows.input_ids),
        position_ids=None if rows.position_ids is None else torch.from_numpy(rows.position_ids),
        predict=predict,
        tokens=tokens,
        index=torch.tensor([pair.index for pair in pairs]),
        weight=torch.tensor(weights if weights is not None else [1.0] * len(pairs)),
        reference=None if reference is None else reference[:sides],
        columns=_columns([pair.columns for pair in pairs]),
        packing=rows.packing,
    )


def _columns(columns: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Per-pair numbers as one tensor [B] a name; only names that every pair has."""
    names = set(columns[0]).intersection(*columns[1:]) if columns else set()
    return {name: torch.tensor([c[name] for c in columns], dtype=torch.float64) for name in sorted(names)}


def _joined(parts: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _to(record: T, device: torch.device) -> T:
    """A dataclass with its tensors, and those of what it holds, on `device`."""
    moved: dict[str, Any] = {}
    for f in fields(record):  # type: ignore[arg-type]
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device, non_blocking=True)
        elif isinstance(value, CompletionTokens):
            moved[f.name] = _to(value, device)
        elif isinstance(value, Packing):
            moved[f.name] = value.to(device)
        elif isinstance(value, Mapping):
            moved[f.name] = {name: column.to(device) for name, column in value.items()}
    return replace(record, **moved)  # type: ignore[type-var]

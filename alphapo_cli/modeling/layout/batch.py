"""The one structure that every layout produces and that the log-prob head reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alphapo_cli.modeling.layout.packing import Packing


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of pairs as model input. R rows, T positions, N completion tokens, B pairs, K sides.

    Hidden state `predict[i]` (an index into the flattened [R * T] positions, or into the rows that `packing` keeps)
    predicts completion token `targets[i]`, which belongs to answer `answer[i]` = side * B + pair. Where the prompt is
    shared, all sides' first tokens are predicted from the same position, which then occurs once for each.
    """

    input_ids: Tensor  # [R, T] int64
    attention_mask: Tensor | None  # [R, T], None where causal attention alone is right
    position_ids: Tensor | None  # [R, T]
    predict: Tensor  # [N] int64
    targets: Tensor  # [N] int64
    answer: Tensor  # [N] int64
    num_pairs: int
    num_sides: int
    index: Tensor  # [B] int64, position of the pair in its data set
    weight: Tensor  # [B] float32, 1 for a pair and 0 for one that only fills up a ragged step
    reference: Tensor | None  # [K, B] float64, summed reference log-probs
    columns: Mapping[str, Tensor]  # name -> [B] float64
    present: Tensor | None = None  # [K, B] bool, whether the row has the answer; None: every row has every one
    turn: Tensor | None = None  # [N] int64, which turn of its answer a token belongs to; None: answers are one turn
    guide: Tensor | None = None  # [N] float32, log-ratio of a guide model to the reference
    packing: Packing | None = None  # who attends to whom in a packed row; None: rows are single answers

    def trained(self, turns: Sequence[npt.NDArray[np.int32]]) -> PairBatch:
        """The same without the tokens that are only read: `turns`, answer after answer, is -1 there; empty: none is."""
        if not turns:
            return self
        turn = torch.from_numpy(np.concatenate(turns).astype(np.int64))
        kept = turn >= 0
        return replace(
            self, predict=self.predict[kept], targets=self.targets[kept], answer=self.answer[kept], turn=turn[kept],
            guide=None if self.guide is None else self.guide[kept],
        )  # fmt: skip

    def to(self, device: torch.device) -> PairBatch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, object] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor | Packing):
                moved[f.name] = value.to(device) if isinstance(value, Packing) else value.to(device, non_blocking=True)
        return replace(self, **moved, columns={k: v.to(device) for k, v in self.columns.items()})  # type: ignore[arg-type]

"""Where the probability of chosen tokens went, over the pairs of a measurement: metrics, and the tokens that gained it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.layout.packed import common_prefix
from alphapo_cli.probe.mass import Moved, Positions, moved_mass
from alphapo_cli.probe.probe import BatchObservation
from alphapo_cli.probe.token_values import TokenLogs
from alphapo_cli.runtime.distributed import Processes

PLACES = ("first", "falls")
_LISTED = 20  # tokens in mass.json
_VALUES = (
    "moved", "to_rejected", "to_end", "to_other", "to_neither", "top10", "top10_change", "top10_entropy", "top10_entropy_change",
    "likeliest_changed", "chosen_left_top10",
)  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """The positions of a batch: pair and place (index into `PLACES`) of each, and what moved there."""

    pairs: Tensor  # [M]
    places: Tensor  # [M]
    moved: Moved


class MassMoved:
    """Collects what moved at the first position of each chosen answer, and at those where its tokens fell most.

    Args:
        pairs: P pairs.
        before: log-probs of the tokens under the start; None: only the first position of each answer is looked at.
        falls: positions of each answer at which its tokens fell most.
        end_ids: ids of tokens that end an answer.
        chunk_bytes: memory that distributions may take at a time.
    """

    def __init__(
        self, pairs: TokenPairs, before: TokenLogs | None, falls: int, end_ids: Sequence[int], chunk_bytes: int
    ) -> None:
        self.pairs, self.before, self.falls = pairs, before, falls
        self.end_ids, self.chunk_bytes = end_ids, chunk_bytes
        self.parts: list[_Part] = []

    def __call__(self, seen: BatchObservation) -> None:
        """Take the positions of a batch; at step 0 nothing has moved."""
        start, start_head = seen.start or (seen.hidden, seen.head)
        tokens = seen.batch.tokens
        chosen = tokens.side == 0
        counts = torch.bincount(tokens.pair[chosen], minlength=tokens.num_pairs).tolist()
        rows, places, pairs, rejected = [], [], [], []
        first = 0
        for pair, count in zip(seen.chunk, counts, strict=True):
            now = seen.logps[first : first + count].float().cpu().numpy()
            for place, position in self._positions(pair, now):
                rows.append(first + position)
                places.append(place)
                pairs.append(pair)
                rejected.append(self._rejected(pair, position))
            first += count
        index = torch.tensor(rows, dtype=torch.int64, device=seen.hidden.device)
        at = Positions(seen.hidden[index], start[index], tokens.ids[index], torch.tensor(rejected, device=index.device))
        moved = moved_mass(at, seen.head, start_head, self.end_ids, chunk_bytes=self.chunk_bytes)
        self.parts.append(_Part(torch.tensor(pairs), torch.tensor(places), moved))

    def _positions(self, pair: int, now: np.ndarray) -> list[tuple[int, int]]:
        """(place, position) of the positions of a pair's chosen answer."""
        if not len(now):
            return []
        if self.before is None:
            return [(0, 0)]
        change = now - self.before.logps[pair, 0]
        fell = [int(i) for i in np.argsort(change, kind="stable")[: self.falls] if change[i] < 0]
        return [(0, 0), *((1, position) for position in fell)]

    def _rejected(self, pair: int, position: int) -> int:
        """The rejected answer's token in the context of a position of the chosen one; -1 where its context is another."""
        chosen, rejected = self.pairs.chosen[pair], self.pairs.rejected[pair]
        known = not self.pairs.turns and position <= common_prefix(chosen, rejected) and position < len(rejected)
        return int(rejected[position]) if known else -1

    def gather(self, processes: Processes) -> None:
        """Take what the other processes have collected, too."""
        self.parts = processes.gather(self.parts)

    def metrics(self) -> dict[str, float | None]:
        """Means over the positions, as `mass/<place>/<value>`; null where no token fell."""
        row: dict[str, float | None] = {}
        for place, name in enumerate(PLACES[:1] if self.before is None else PLACES):
            _, moved = self._of(place)
            for value in _VALUES:
                numbers = None if moved is None else getattr(moved, value)
                row[f"mass/{name}/{value}"] = None if numbers is None or not len(numbers) else float(numbers.mean())
        return row

    def receivers(self, tokenizer: Any) -> dict[str, Any]:
        """The tokens to which most probability went.

        Args:
            tokenizer: decodes them.

        Returns:
            Place -> number of pairs and positions, and for each token its id, its text, the share (0 to 1) of pairs on
            which it gained most at a position, and its mean gain over all positions.
        """
        found: dict[str, Any] = {}
        for place, name in enumerate(PLACES):
            pairs, moved = self._of(place)
            tokens: list[dict[str, Any]] = []
            count = 0
            if moved is not None and len(pairs):
                count = len(set(pairs.tolist()))
                first = {
                    (pair, token) for pair, token in zip(pairs.tolist(), moved.gainers[:, 0].tolist(), strict=True)
                }
                most = Counter(token for _, token in first)
                gains: Counter[int] = Counter()
                for ids, values in zip(moved.gainers.tolist(), moved.gains.tolist(), strict=True):
                    gains.update({token: value for token, value in zip(ids, values, strict=True) if value > 0})
                listed = sorted(most, key=lambda token: (-most[token], -gains[token], token))[:_LISTED]
                tokens = [
                    {
                        "id": token,
                        "text": tokenizer.decode([token]),
                        "share_of_pairs": most[token] / count,
                        "mean_gain": gains[token] / len(pairs),
                    }
                    for token in listed
                ]
            found[name] = {"pairs": count, "positions": 0 if moved is None else len(pairs), "tokens": tokens}
        return found

    def _of(self, place: int) -> tuple[Tensor, Moved | None]:
        """Pairs and values of all positions of a place, in the order of the pairs."""
        if not self.parts:
            return torch.zeros(0, dtype=torch.int64), None
        pairs = torch.cat([part.pairs for part in self.parts])
        where = torch.cat([part.places for part in self.parts]) == place
        order = torch.argsort(pairs[where], stable=True)
        moved = self.parts[0].moved
        joined = {f.name: torch.cat([getattr(part.moved, f.name) for part in self.parts]) for f in fields(Moved)}
        kept = {name: values[where][order] for name, values in joined.items()}
        return pairs[where][order], replace(moved, **kept)


def sentence(receivers: dict[str, Any], metrics: dict[str, float | None]) -> str | None:
    """One line that says where the probability went; None where nothing fell."""
    place = receivers["falls"]
    if not place["tokens"]:
        return None
    shown = ", ".join(f"{one['text']!r} ({one['share_of_pairs']:.0%})" for one in place["tokens"][:3])
    parts = {
        name: metrics.get(f"mass/falls/{key}") or 0.0
        for name, key in (
            ("the rejected answer's token", "to_rejected"),
            ("end tokens", "to_end"),
            ("others", "to_other"),
        )
    }
    total = sum(parts.values()) or 1.0
    split = ", ".join(f"{value / total:.0%} to {name}" for name, value in parts.items())
    return f"where chosen tokens fell most, probability went {split}; the tokens that gained most, by share of {place['pairs']:,} pairs: {shown}"

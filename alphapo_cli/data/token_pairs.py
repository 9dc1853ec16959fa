"""Tokenised pairs as flat arrays: four bytes per token, saved and loaded without a copy per sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from alphapo_cli.errors import UsageError

Ids = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]
Logs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths: `ids` [sum of lengths] int32, `offsets` [n + 1] int64."""

    ids: Ids
    offsets: Index

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]]) -> Ragged:
        """Concatenate n sequences of ids."""
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        flat = np.empty(int(offsets[-1]), np.int32)
        for sequence, start, stop in zip(sequences, offsets[:-1], offsets[1:], strict=True):
            flat[start:stop] = sequence
        return cls(flat, offsets)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Concatenate the sequences of several parts."""
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.concatenate([part.ids for part in parts]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Index:
        """[n] lengths in tokens."""
        return np.diff(self.offsets)

    def select(self, indices: Sequence[int] | Index) -> Ragged:
        """The sequences at `indices`, in that order."""
        return Ragged.from_lists([self[int(index)] for index in indices])  # type: ignore[misc]


@dataclass(frozen=True)
class TokenPair:
    """One pair as token ids; every completion includes its end token, an absent side is empty.

    Attributes:
        prompt: [P] ids.
        chosen: [C] ids.
        rejected: [R] ids.
        columns: the row's numeric columns, NaN where it has none.
        index: position in the source data set.
        others: ids of further answers.
        guide: per answer, [tokens] log-ratios of a guide model to the reference in nats; empty without a guide.
        turns: per answer, [tokens] index of the assistant turn, -1 for tokens that are context and not trained; empty
            for answers of one turn.
    """

    prompt: Ids
    chosen: Ids
    rejected: Ids
    columns: Mapping[str, float]
    index: int
    others: tuple[Ids, ...] = ()
    guide: tuple[Logs, ...] = ()
    turns: tuple[Ids, ...] = ()

    @property
    def answers(self) -> tuple[Ids, ...]:
        """Chosen, rejected and further answers."""
        return (self.chosen, self.rejected, *self.others)


@dataclass(frozen=True)
class TokenPairs:
    """n tokenised pairs, an absent side of an unpaired row without tokens.

    Attributes:
        prompt: n sequences of ids.
        chosen: n completions.
        rejected: n completions.
        prompt_keys: [n] hex digests, equal for equal prompts.
        index: [n] position of each pair among the usable pairs of its source.
        columns: by name, [n] float64, NaN where a row has no value.
        others: sides 2, 3, ... of pairs with more than two answers.
        guide: per side, the log-ratios of `TokenPair.guide` concatenated; `select` drops them.
        turns: per side, see `TokenPair.turns`.
        source: [n] position of each pair's source in `source_names`; None for pairs of a single source.
        source_names: names of the sources of a mixture.
        subset: [n] position of each pair's subset in `subset_names`, -1 for none; None for pairs without subsets.
        subset_names: names of the subsets.
    """

    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    prompt_keys: tuple[str, ...]
    index: Index
    columns: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    others: tuple[Ragged, ...] = ()
    guide: tuple[Logs, ...] = ()
    turns: tuple[Ragged, ...] = ()
    source: Index | None = None
    source_names: tuple[str, ...] = ()
    subset: Index | None = None
    subset_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def answers(self) -> tuple[Ragged, ...]:
        """Chosen, rejected and further answers."""
        return (self.chosen, self.rejected, *self.others)

    @property
    def num_sides(self) -> int:
        """Number of sides of every pair, absent ones included."""
        return len(self.answers)

    @property
    def unpaired(self) -> bool:
        """Whether any row has an absent side."""
        return any(bool((side.lengths == 0).any()) for side in self.answers)

    def trained_lengths(self, side: int) -> Index:
        """[n] tokens of a side that are trained: all, or those of the assistant's turns."""
        if not self.turns:
            return self.answers[side].lengths
        turns = self.turns[side]
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(turns.ids >= 0)])
        return np.diff(before[turns.offsets])

    def longest(self, sides: int | None = None) -> Index:
        """[n] length in tokens of the longest of the first `sides` answers (all, if None)."""
        longest: Index = np.max([side.lengths for side in self.answers[:sides]], axis=0)
        return longest

    def __getitem__(self, position: int) -> TokenPair:
        if not -len(self) <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        position %= len(self)
        return TokenPair(
            prompt=self.prompt[position],
            chosen=self.chosen[position],
            rejected=self.rejected[position],
            columns={name: float(values[position]) for name, values in self.columns.items()},
            index=int(self.index[position]),
            others=tuple(side[position] for side in self.others),
            guide=tuple(
                logs[side.offsets[position] : side.offsets[position + 1]]
                for logs, side in zip(self.guide, self.answers, strict=False)
            ),
            turns=tuple(side[position] for side in self.turns),
        )

    def __iter__(self) -> Iterator[TokenPair]:
        return (self[position] for position in range(len(self)))

    def with_mismatched(self) -> TokenPairs:
        """Add a mismatched answer to each row: an answer of the next row, in the data's order, with another prompt.

        Chosen and rejected answers alternate. Answers are truncated so that no row is longer than the longest before.

        Returns:
            The pairs with `others` set to the mismatched answers.

        Raises:
            UsageError: answers have several turns.
        """
        if self.turns:
            raise UsageError(
                "data.trajectories: an objective that reads mismatched answers takes single turns; leave it out"
            )
        n = len(self)
        limit = int((self.prompt.lengths + self.longest(2)).max())
        following = [(i + 1) % n for i in range(n)]
        for i in reversed(range(2 * n)):  # two rounds: the last rows depend on the first
            after = (i + 1) % n
            same = self.prompt_keys[after] == self.prompt_keys[i % n]
            following[i % n] = following[after] if same and i < 2 * n - 1 else after
        mismatched: list[list[int]] = []
        for i, j in enumerate(following):
            available = [side for side in (self.chosen[j], self.rejected[j]) if len(side)]
            length = max(1, limit - len(self.prompt[i]))
            mismatched.append(available[i % len(available)][:length].tolist())
        return replace(self, others=(Ragged.from_lists(mismatched),))

    def select(self, indices: Sequence[int] | Index) -> TokenPairs:
        """The pairs at `indices`, in that order."""
        positions = np.asarray(indices, np.int64)
        return TokenPairs(
            prompt=self.prompt.select(positions),
            chosen=self.chosen.select(positions),
            rejected=self.rejected.select(positions),
            prompt_keys=tuple(self.prompt_keys[int(position)] for position in positions),
            index=self.index[positions],
            columns={name: values[positions] for name, values in self.columns.items()},
            others=tuple(side.select(positions) for side in self.others),
            turns=tuple(side.select(positions) for side in self.turns),
            source=None if self.source is None else self.source[positions],
            source_names=self.source_names,
            subset=None if self.subset is None else self.subset[positions],
            subset_names=self.subset_names,
        )

    def followed_by(self, other: TokenPairs) -> TokenPairs:
        """These pairs, then those of `other`, which are of the same data; columns that only one has are left out."""

        def join(ours: tuple[Ragged, ...], theirs: tuple[Ragged, ...]) -> tuple[Ragged, ...]:
            return tuple(Ragged.joined(both) for both in zip(ours, theirs, strict=True))

        source = None
        if self.source is not None and other.source is not None and self.source_names == other.source_names:
            source = np.concatenate([self.source, other.source])
        subset_names = tuple(sorted({*self.subset_names, *other.subset_names}))
        subsets = [pairs.subset_among(subset_names) for pairs in (self, other)] if subset_names else []
        (prompt, chosen, rejected, *others) = join((self.prompt, *self.answers), (other.prompt, *other.answers))
        return TokenPairs(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            prompt_keys=(*self.prompt_keys, *other.prompt_keys),
            index=np.concatenate([self.index, other.index]),
            columns={k: np.concatenate([v, other.columns[k]]) for k, v in self.columns.items() if k in other.columns},
            others=tuple(others),
            turns=join(self.turns, other.turns),
            source=source,
            source_names=() if source is None else self.source_names,
            subset=np.concatenate(subsets) if subsets else None,
            subset_names=subset_names,
        )

    def subset_among(self, names: Sequence[str]) -> Index:
        """[n] position of each pair's subset in `names`, which hold all of `subset_names`; -1 for none."""
        places = np.array([*map(list(names).index, self.subset_names), -1], np.int64)
        return np.full(len(self), -1, np.int64) if self.subset is None else places[self.subset]

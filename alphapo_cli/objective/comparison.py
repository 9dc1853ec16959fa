"""What links, margins and weights read: the two sides of each pair as scores and rewards, and what came with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.logprobs import AnswerLogProbs

Memory = Mapping[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """When an objective is evaluated: how far training has come, and what its parts remember of earlier steps."""

    progress: float = 0.0  # optimizer steps taken over all of them, 0 to 1
    memory: Mapping[str, Memory] = field(default_factory=dict)  # kind of part -> its values


@dataclass(frozen=True)
class Comparison:
    """K sides (chosen first) of B pairs."""

    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    beta: float
    offset: Tensor | float = 0.0  # subtracted from the reward margin: gamma and what the margin part adds
    answers: AnswerLogProbs | None = None
    memory: Memory = field(default_factory=dict)  # of the part that is called

    @property
    def margin(self) -> Tensor:
        """m = r_w - r_l - offset, [B]."""
        return self.rewards[0] - self.rewards[1] - self.offset

    @property
    def unscaled(self) -> Tensor:
        """h(s), [K, B]: rewards in units of beta, in which some losses are stated."""
        return self.rewards / self.beta

    def swapped(self) -> Comparison:
        """The same pairs under the opposite label: the margin changes its sign."""
        return replace(self, scores=self.scores.flip(0), rewards=self.rewards.flip(0), offset=-self.offset)

    @property
    def given(self) -> AnswerLogProbs:
        """Sums, lengths, columns and tokens, which a bare list of scores has not.

        Raises:
            UsageError: there are none.
        """
        if self.answers is None:
            raise UsageError("this objective reads more than scores, and only scores were given")
        return self.answers

    def column(self, name: str) -> Tensor:
        """[B] numbers that came with the pairs, without gradient.

        Raises:
            UsageError: there is no such column.
        """
        columns = self.given.columns
        if name not in columns:
            raise UsageError(f"no column '{name}' (there are: {', '.join(columns) or 'none'})")
        return columns[name].to(self.scores)

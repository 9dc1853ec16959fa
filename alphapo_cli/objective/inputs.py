"""What links, margins and weights read: the two sides of each pair as scores and rewards, and what came with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs

PartState = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """When an objective is evaluated: how far training has come, and what its parts remember of earlier steps."""

    progress: float = 0.0  # optimizer steps taken over all of them, 0 to 1
    states: Mapping[str, PartState] = field(default_factory=dict)  # kind of part -> its state


@dataclass(frozen=True)
class ObjectiveInputs:
    """K sides (chosen first) of B pairs."""

    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    beta: float
    offset: Tensor | float = 0.0  # subtracted from the reward margin: gamma and what the margin part adds
    answers: AnswerLogProbs | None = None
    state: PartState = field(default_factory=dict)  # of the part that is called
    flipped: bool = False  # whether chosen and rejected have changed places
    rounding: Tensor | float = 0.0  # [K, B] bound on the rounding error of each reward

    @property
    def margin(self) -> Tensor:
        """m = r_w - r_l - offset, [B]."""
        return self.rewards[0] - self.rewards[1] - self.offset

    @property
    def unscaled(self) -> Tensor:
        """h(s), [K, B]: rewards in units of beta, in which some losses are stated."""
        return self.rewards / self.beta

    def swapped(self) -> ObjectiveInputs:
        """The same pairs under the opposite label: the margin changes its sign."""
        order = [1, 0, *range(2, self.scores.shape[0])]
        return replace(
            self, scores=self.scores[order], rewards=self.rewards[order], offset=-self.offset, flipped=not self.flipped,
            rounding=self.rounding if isinstance(self.rounding, float) else self.rounding[order],
        )  # fmt: skip

    def first(self, sides: int) -> ObjectiveInputs:
        """The same with at most the first `sides` answers of each row."""
        if self.scores.shape[0] <= sides:
            return self
        answers = None if self.answers is None else self.answers.first(sides)
        rounding = self.rounding if isinstance(self.rounding, float) else self.rounding[:sides]
        return replace(
            self, scores=self.scores[:sides], rewards=self.rewards[:sides], answers=answers, rounding=rounding
        )

    def each(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """A term of the chosen and one of the rejected answer, [B] each: their sum, without that of an absent answer."""
        first, second = self.present(0), self.present(1)
        if first is None or second is None:
            return chosen + rejected
        return chosen * first + rejected * second

    def present(self, side: int) -> Tensor | None:
        """[B] whether each row has the answer of that side; None: all have."""
        present = None if self.answers is None else self.answers.present
        if present is None or side > 1:
            return None if present is None else present[side]
        return present[1 - side] if self.flipped else present[side]

    def columns_of_sides(self, name: str) -> Tensor:
        """[K, B] a column of every answer: <name>_chosen, <name>_rejected, <name>_2, and so on.

        Raises:
            UsageError: one is missing.
        """
        return self.given.column_of_sides(name + "_{}").to(self.scores)

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

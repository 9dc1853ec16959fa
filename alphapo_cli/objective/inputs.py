"""What links, margins, weights and regularisers read: scores and rewards of each pair's answers, and their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs

PartState = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """When an objective is evaluated: the progress of training, and the states of its parts."""

    progress: float = 0.0  # optimizer steps taken / all steps, 0 to 1
    states: Mapping[str, PartState] = field(default_factory=dict)  # kind of part -> its state


@dataclass(frozen=True)
class ObjectiveInputs:
    """Scores and rewards of B pairs with K sides (chosen first), and the log-probs that they come from."""

    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    beta: float
    offset: Tensor | float = 0.0  # subtracted from the reward margin: gamma plus the margin part
    answers: AnswerLogProbs | None = None
    state: PartState = field(default_factory=dict)  # of the part that is called
    flipped: bool = False  # whether chosen and rejected are swapped
    rounding: Tensor | float = 0.0  # [K, B] bound on the rounding error of each reward, see `of_branches`

    @property
    def margin(self) -> Tensor:
        """Margin m = r_w - r_l - offset, [B]."""
        return self.rewards[0] - self.rewards[1] - self.offset

    @property
    def unscaled(self) -> Tensor:
        """Unscaled rewards h(s) = r / beta, [K, B], in which some losses are stated."""
        return self.rewards / self.beta

    def swapped(self) -> ObjectiveInputs:
        """The same pairs under the opposite label.

        The margin m changes its sign, what is subtracted in it included: sigmoid(m) is the model's probability of the
        label, and sigmoid(-m) that of the opposite one. SimPO's authors smooth labels so in their code, gamma included.

        Returns:
            The inputs with chosen and rejected answers exchanged, columns and states as they are.
        """
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
        """Sum a term of the chosen and one of the rejected answer, [B] each, without those of absent answers."""
        first, second = self.present(0), self.present(1)
        if first is None or second is None:
            return chosen + rejected
        return chosen * first + rejected * second

    def present(self, side: int) -> Tensor | None:
        """Whether each row has the answer of that side, [B] bool; None: all have."""
        present = None if self.answers is None else self.answers.present
        if present is None or side > 1:
            return None if present is None else present[side]
        return present[1 - side] if self.flipped else present[side]

    def columns_of_sides(self, name: str) -> Tensor:
        """A data column of every answer: <name>_chosen, <name>_rejected, <name>_2, and so on.

        Returns:
            [K, B], without gradient.

        Raises:
            UsageError: the column of one of the K answers is missing.
        """
        return self.log_probs.column_of_sides(name + "_{}").to(self.scores)

    @property
    def log_probs(self) -> AnswerLogProbs:
        """Log-probs of the answers: sums, lengths, columns and tokens.

        Raises:
            UsageError: the objective is evaluated on bare scores.
        """
        if self.answers is None:
            raise UsageError("this objective reads more than scores, and only scores were given")
        return self.answers

    def column(self, name: str) -> Tensor:
        """A data column, by its whole name.

        Returns:
            [B], without gradient.

        Raises:
            UsageError: there is no such column.
        """
        columns = self.log_probs.columns
        if name not in columns:
            raise UsageError(f"no column '{name}' (there are: {', '.join(columns) or 'none'})")
        return columns[name].to(self.scores)

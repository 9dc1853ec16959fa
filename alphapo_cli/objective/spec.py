"""What an objective is made of, and what follows from its parts: the data, columns and answers that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from alphapo_cli.config.objective_parts import OPTIONAL
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.part import BoundPart, Part


@dataclass(frozen=True)
class ObjectiveSpec:
    """A point in score x shape x link x margin x weight x regulariser with its numbers."""

    name: str
    parts: Mapping[str, BoundPart]  # kind -> part
    beta: float
    gamma: float = 0.0
    label_smoothing: float = 0.0
    label_model: str = "smooth"
    label_column: str | None = None
    preference: float = 1.0
    nll: float = 0.0
    nll_scope: str = "mean"
    reference_every: int | None = None  # optimizer steps between moves of the reference
    reference_mix: float = 1.0

    @property
    def score(self) -> Part:
        return self.parts["score"].part

    @property
    def shape(self) -> Part:
        return self.parts["shape"].part

    @property
    def link(self) -> Part:
        return self.parts["link"].part

    @property
    def score_function(self) -> Callable[[AnswerLogProbs], Tensor]:
        return self.parts["score"]

    @property
    def shape_function(self) -> Callable[..., Tensor]:
        return self.parts["shape"]

    @property
    def needs_reference(self) -> bool:
        return any(bound.part.needs_reference for bound in self.parts.values())

    @property
    def needs_rejected(self) -> bool:
        return self.link.needs_rejected

    @property
    def weighs_tokens(self) -> bool:
        return self.parts["token"].part.name != OPTIONAL["token"]

    @property
    def needs_statistics(self) -> bool:
        """Whether it reads facts of the whole next-token distribution."""
        return any(bound.part.needs_statistics for bound in self.parts.values())

    @property
    def needs_kl(self) -> bool:
        """Whether it reads KL(reference || policy), for which the reference is run at every step."""
        return any(bound.part.needs_kl for bound in self.parts.values())

    @property
    def needs_guide(self) -> bool:
        """Whether it weighs tokens by what a guide model says of them."""
        return any(bound.part.needs_guide for bound in self.parts.values())

    @property
    def columns(self) -> dict[str, str]:
        """Per-pair columns that it reads, each with what reads it in words."""
        found = {name: bound.words for bound in self.parts.values() for name in bound.columns}
        return found if self.label_column is None else {**found, self.label_column: "label_column"}

    def columns_of(self, sides: int) -> dict[str, str]:
        """`columns` on rows of `sides` answers: what reads all answers, as a score does, reads a column of each."""
        found = dict(self.columns)
        for bound in self.parts.values():
            if bound.part.sides is None or bound.part.kind == "score":
                names = [name for name in bound.columns if "_chosen" in name]
                found |= {n.replace("_chosen", f"_{side}"): bound.words for n in names for side in range(2, sides)}
        return found

    def sides(self, available: int) -> int:
        """How many answers of each row it reads, where there are so many."""
        if self.reads_all is not None:
            return available
        asked = [bound.part.sides or 0 for bound in self.parts.values() if not bound.part.mismatched]
        third = min(available, 3) if self.needs_mismatched else 0
        return max(2 if self.needs_rejected else 1, third, *(n for n in asked if n > 2))

    @property
    def reads_all(self) -> BoundPart | None:
        """The part that reads all answers of a row, if one does."""
        return next((bound for bound in self.parts.values() if bound.part.sides is None), None)

    @property
    def needs_mismatched(self) -> bool:
        """Whether it is trained with an answer to another prompt beside each row's own."""
        return any(bound.part.mismatched for bound in self.parts.values())

    @property
    def pairing(self) -> BoundPart | None:
        """A part that cannot read a row with one answer alone; None: unpaired rows can be trained on."""
        kinds = ("link", "token", "margin", "weight", "regulariser")
        return next((self.parts[kind] for kind in kinds if not self.parts[kind].part.pointwise), None)

    @property
    def observes(self) -> bool:
        """Whether it needs the values of a whole step before the step's loss."""
        return any(b.part.stateful is not None and b.part.stateful.observe is not None for b in self.parts.values())

"""Scorers without a model: the embedded world's reward, lengths, sources, columns that exist, and their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.pairs.candidates import SELF, Answer, Candidates
from alphapo_cli.pairs.read import columns_of
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Plain, Scores


class Glassbox(Plain):
    """The embedded world's true reward, with an optional bias per word: a scorer that can be gamed."""

    def __init__(self, column: str, cfg: ScorerConfig) -> None:
        super().__init__(column)
        self.bias = cfg.length_bias

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        return {"scorer": "glassbox", "length_bias": self.bias}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`; every prompt must be of the embedded world."""
        for prompt in prompts:
            try:
                world.parse(prompt.text)
            except UsageError as error:
                raise UsageError(f"scorer=glassbox: {error}; choose another scorer") from error

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        return [
            [world.true_reward(p.text, a.text) + self.bias * len(a.text.split()) for a in p.answers] for p in prompts
        ]


class Length(Plain):
    """The length of an answer in `scorer.unit`."""

    def __init__(self, column: str, cfg: ScorerConfig) -> None:
        super().__init__(column)
        self.unit = cfg.unit

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        return {"scorer": "length", "unit": self.unit}

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        return [[float(answer.length(self.unit)) for answer in prompt.answers] for prompt in prompts]


class Source(Plain):
    """1 for an answer of the sources `scorer.of`, or of any but the sampled model where it names none; 0 for others."""

    def __init__(self, column: str, cfg: ScorerConfig) -> None:
        super().__init__(column)
        self.of = list(cfg.of)

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        return {"scorer": "source", "of": self.of}

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        return [[float(a.source in self.of if self.of else a.source != SELF) for a in p.answers] for p in prompts]


class Columns(Plain):
    """Scores that came with the answers: one column, or the mean of several (an ensemble)."""

    def __init__(self, column: str, cfg: ScorerConfig, made: Sequence[str] = ()) -> None:
        super().__init__(column)
        self.of, self.made, self.name = list(cfg.of), list(made), cfg.name
        if cfg.name == "mean" and len(self.of) < 2:
            raise UsageError("scorer=mean: of which columns? give scorer.of=[NAME,NAME]")

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        return {"scorer": self.name, "of": self.of}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`; where answers exist they must have the columns."""
        known = [*columns_of(prompts), *self.made]
        for name in self.of or [self.column]:
            if name not in known:
                raise UsageError(
                    f"scorer={self.name}: the answers have no scores '{name}'{nearest(name, known)} (there are: "
                    f"{', '.join(known) or 'none'})"
                )

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`."""
        return [[self._of(answer) for answer in prompt.answers] for prompt in prompts]

    def _of(self, answer: Answer) -> float | None:
        values = [answer.scores[name] for name in self.of or [self.column] if name in answer.scores]
        return math.fsum(values) / len(values) if len(values) == len(self.of or [self.column]) else None

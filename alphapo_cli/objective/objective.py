"""An objective: its parts put together. The only place where beta and gamma are applied.

s = score(log-probs, token weights)               [K, B]   K sides (chosen, rejected, others), B pairs
r = beta h(s)                                     [K, B]   reward
m = r_w - r_l - gamma - margin(...)               [B]
loss = preference * weight(...) * link(r, m)      [B]      one value a pair; the caller takes the mean
     + nll * NLL_w + regulariser(...)

Parts see the first two sides unless they ask for more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs, above
from alphapo_cli.objective import part_state
from alphapo_cli.objective.inputs import ObjectiveInputs, PartState, StepContext
from alphapo_cli.objective.spec import ObjectiveSpec


@dataclass(frozen=True)
class PairLoss:
    """What one evaluation of an objective gives; metrics are taken from these tensors, detached."""

    loss: Tensor  # [B]
    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    margins: Tensor | None  # [B], chosen minus rejected reward, before gamma; None where no rejected side was given
    rounding: Tensor  # [K, B], bound on the rounding error of each reward; 0 where log-probs are exact

    @property
    def accuracy(self) -> Tensor | None:
        """[B] 1 where the chosen reward is the higher one, 0 where it is the lower, 0.5 where rounding may decide."""
        return None if self.margins is None else above(self.margins, self.rounding[0] + self.rounding[1])


@dataclass(frozen=True)
class Objective(ObjectiveSpec):
    """A point that can be evaluated."""

    def weigh(self, answers: AnswerLogProbs) -> Tensor:
        """Sums, lengths and sums of squares under the token weights: [3, K, B].

        Raises:
            UsageError: there are only sums.
        """
        scored = answers.per_token
        if scored is None:
            raise UsageError(f"objective '{self.name}' weighs single tokens, and only sums over answers were given")
        weights = self.parts["token"](answers, scored)
        summed = (weights * scored.logps, weights, weights.detach() ** 2)
        return torch.stack([scored.tokens.sum_over(values) for values in summed])

    def _part(self, kind: str, c: ObjectiveInputs) -> Tensor | float:
        """What a part says of the answers that it is to see."""
        bound = self.parts[kind]
        return bound(c if bound.part.sides is None else c.first(bound.part.sides))  # type: ignore[no-any-return]

    def given(self, answers: AnswerLogProbs) -> AnswerLogProbs:
        """`answers` as it computes with them: widened, and with what its token weights make of them."""
        answers = answers.widened()
        if self.weighs_tokens and answers.weighted is None:
            answers = replace(answers, weighted=self.weigh(answers))
        return answers

    def scores(self, answers: AnswerLogProbs) -> Tensor:
        """s of every answer, [K, B]."""
        return self.score_function(self.given(answers).counted())

    @cached_property
    def start(self) -> StepContext:
        """Before the first step."""
        return StepContext(0.0, part_state.begin(self.parts))

    def observe(self, answers: AnswerLogProbs, context: StepContext) -> dict[str, Tensor]:
        """What its parts want to know of each pair of a step: kind -> [B, F]."""
        answers = self.given(answers)
        here = self.at(context)
        scores = here.scores(answers)
        return part_state.observe(
            self.parts, ObjectiveInputs(scores, here.rewards(scores), self.beta, self.gamma, answers)
        )

    def update(self, states: Mapping[str, PartState], observed: Mapping[str, Tensor]) -> dict[str, PartState]:
        """The states with which a step is computed, from what was observed of all its pairs."""
        return part_state.update(self.parts, states, observed)

    def on_probe(self, states: Mapping[str, PartState], row: Mapping[str, Any]) -> dict[str, PartState]:
        """The states after a measurement of the probe, `row` its metrics."""
        return part_state.on_probe(self.parts, states, row)

    def readings(self, context: StepContext) -> dict[str, float]:
        """Numbers to log: the scheduled parameter, and what the parts remember."""
        bound = self.parts["schedule"]
        value = bound(context, context.states.get("schedule", {}))
        found = {} if value is None else {"train/objective/scheduled": float(value)}
        for kind, state in context.states.items():
            if kind != "schedule":
                found |= {f"train/objective/{name}": float(x) for name, x in state.items() if x.dim() == 0}
        return found

    def at(self, context: StepContext) -> Objective:
        """The same with its scheduled parameter as it is at `context`."""
        bound = self.parts["schedule"]
        value = bound(context, context.states.get("schedule", {}))
        if value is None:
            return self
        kind, _, parameter = str(bound.settings["of"]).partition(".")
        moved = self.parts[kind].part.bind({**self.parts[kind].settings, parameter: value})
        return replace(self, parts={**self.parts, kind: moved})

    def rewards(self, scores: Tensor) -> Tensor:
        """r = beta h(s), of any shape."""
        return self.beta * self.shape_function(scores, self.score.score_kind)

    @torch.no_grad()
    def reward_rounding(self, answers: AnswerLogProbs) -> Tensor:
        """Bound on the rounding error of the rewards, [K, B]: half of what they span over the bounds of the log-probs.

        A reward is a monotone function of its answer's summed log-prob. Where it reads a reference, whose sums are
        rounded as well and independently, the bounds of the two add in squares.
        """
        if not answers.token_rounding:
            return torch.zeros_like(answers.sums)
        answers = self.given(answers)
        bound = answers.rounding() * (math.sqrt(2) if self.needs_reference else 1.0)
        high, low = (self.rewards(self.scores(answers.shifted(by))) for by in (bound, -bound))
        return (high - low).abs() / 2

    def compare(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> ObjectiveInputs:
        """What the other parts read of `scores` [K, B]."""
        states = (context or self.start).states
        rewards = self.rewards(scores)
        rounding = 0.0 if answers is None else self.reward_rounding(answers)
        c = ObjectiveInputs(
            scores, rewards, self.beta, self.gamma, answers, states.get("margin", {}), rounding=rounding
        )
        return replace(c, offset=self.gamma + self._part("margin", c), state={})

    def preference_loss(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> Tensor:
        """The loss of the preference term alone as a function of the scores: [K, B] -> [B]."""
        states = (context or self.start).states
        c = self.compare(scores, answers, context)
        loss = self._labelled(replace(c, state=states.get("link", {})))
        factor = self._part("weight", replace(c, state=states.get("weight", {})))
        return self.preference * factor * loss

    def _labelled(self, c: ObjectiveInputs) -> Tensor:
        """The link under the label, which may be uncertain."""
        one = functools.partial(self._part, "link")
        loss = torch.as_tensor(one(c))
        if self.label_column is not None:
            right = c.column(self.label_column)
            loss = right * loss + (1 - right) * one(c.swapped())
        wrong = self.label_smoothing
        if wrong and self.label_model == "unbiased":
            # Robust DPO's: its mean over labels flipped with probability `wrong` is the loss of the clean label.
            loss = ((1 - wrong) * loss - wrong * one(c.swapped())) / (1 - 2 * wrong)
        elif wrong:
            # cDPO's mixture: the label is wrong with probability label_smoothing.
            loss = (1 - wrong) * loss + wrong * one(c.swapped())
        return loss

    def __call__(self, answers: AnswerLogProbs, context: StepContext | None = None) -> PairLoss:
        """Loss, scores and rewards of a batch.

        Args:
            answers: sums and lengths [K, B]; `reference` where `needs_reference`. bf16 or fp16 is widened to float32.
            context: when; schedules and states stand at their start without it.

        Returns:
            PairLoss in float32 (float64 for float64 input).
        """
        here = self.at(context or self.start)
        answers = self.given(answers)
        scores = here.scores(answers)
        rewards = here.rewards(scores)
        both = scores.shape[0] > 1
        loss = here.preference_loss(scores, answers, context) if both else torch.zeros_like(answers.sums[0])
        if self.nll:
            logp = self.nll * answers.sums[0] / self._nll_tokens(answers)
            loss = loss - (logp if answers.present is None else logp * answers.present[0])
        loss = loss + self._part("regulariser", ObjectiveInputs(scores, rewards, self.beta, answers=answers))
        margins = rewards[0] - rewards[1] if both else None
        return PairLoss(loss, scores, rewards, margins, here.reward_rounding(answers))

    def _nll_tokens(self, answers: AnswerLogProbs) -> Tensor | float:
        """What the chosen side's summed log-prob is divided by."""
        if self.nll_scope == "sum":
            return 1.0
        if self.nll_scope == "mean":
            return answers.lengths[0]
        if answers.chosen_tokens is None:
            lengths = answers.lengths[0]
            # An absent answer has no tokens, though it was widened to one; where all are absent, none counts.
            here = lengths if answers.present is None else lengths * answers.present[0]
            return here.mean().clamp(min=1 / len(here))
        return answers.chosen_tokens or 1.0  # a step of undesirable answers has none, and its NLL does not count

    def score_gradients(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> Tensor:
        """d loss / d s of the preference term, per side and pair: [K, B] -> [K, B], without the 1/B of a mean.

        This is the weight with which a pair pulls each side; for AlphaPO -beta e^{-alpha s_w} sigmoid(gamma - m') and
        +beta e^{-alpha s_l} sigmoid(gamma - m'), m' = r_w - r_l. Taken by differentiation, so that it is exact for
        every shape and link. What reads the log-probs past the score counts as constant.
        """
        answers = None if answers is None else self.given(answers)
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_(True)
            loss = self.at(context or self.start).preference_loss(leaf, answers, context).sum()
            if not loss.requires_grad:  # no preference term
                return torch.zeros_like(scores)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient

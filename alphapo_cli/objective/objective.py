"""An objective: its parts composed. The only place where beta and gamma are applied.

s = score(log-probs, token weights)               [K, B]   K sides (chosen, rejected, others), B pairs
r = beta h(s)                                     [K, B]   reward
m = r_w - r_l - gamma - margin(...)               [B]
loss = preference * weight(...) * link(r, m)      [B]      one value a pair; the caller takes the mean
     + nll * NLL_w + regulariser(...)

Parts read the first two sides unless they ask for more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs, share_above
from alphapo_cli.objective import part_state
from alphapo_cli.objective.inputs import ObjectiveInputs, PartState, StepContext
from alphapo_cli.objective.spec import ObjectiveSpec


@dataclass(frozen=True)
class PairLoss:
    """Result of one evaluation of an objective; metrics are taken from these tensors, detached."""

    loss: Tensor  # [B]
    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    margins: Tensor | None  # [B], chosen minus rejected reward, before gamma; None without a rejected side
    rounding: Tensor  # [K, B], bound on the rounding error of each reward; 0 if log-probs are exact

    @property
    def accuracy(self) -> Tensor | None:
        """Whether the chosen reward is higher, [B]: 1, 0, or 0.5 within rounding; None without a rejected side."""
        return (
            None if self.margins is None else share_above(self.margins, torch.hypot(self.rounding[0], self.rounding[1]))
        )


@dataclass(frozen=True)
class Objective(ObjectiveSpec):
    """An objective that can be evaluated."""

    def weigh(self, answers: AnswerLogProbs) -> Tensor:
        """Sums, lengths and sums of squares under the token weights.

        Returns:
            [3, K, B] float64: sum_t w_t log p_t in nats, sum_t w_t, sum_t w_t^2.

        Raises:
            UsageError: the log-probs are sums, without tokens.
        """
        per_token = answers.per_token
        if per_token is None:
            raise UsageError(f"objective '{self.name}' weighs single tokens, and only sums over answers were given")
        weights = self.parts["token"](answers, per_token)
        summed = (weights * per_token.logps, weights, weights.detach() ** 2)
        return torch.stack([per_token.tokens.sum_over(values) for values in summed])

    def _part(self, kind: str, c: ObjectiveInputs) -> Tensor | float:
        """Evaluate a part on the answers that it reads."""
        bound = self.parts[kind]
        return bound(c if bound.part.sides is None else c.first(bound.part.sides))  # type: ignore[no-any-return]

    def prepared(self, answers: AnswerLogProbs) -> AnswerLogProbs:
        """The answers as they are computed with: in float32 or wider, with sums under the token weights."""
        answers = answers.to_float32()
        if self.weighs_tokens and answers.weighted is None:
            answers = replace(answers, weighted=self.weigh(answers))
        return answers

    def scores(self, answers: AnswerLogProbs) -> Tensor:
        """Scores s of every answer, [K, B]."""
        return self.score_function(self.prepared(answers).with_token_weights())

    @cached_property
    def start(self) -> StepContext:
        """The context before the first step."""
        return StepContext(0.0, part_state.initial_states(self.parts))

    def observe(self, answers: AnswerLogProbs, context: StepContext) -> dict[str, Tensor]:
        """Values of each pair of a step that stateful parts read: kind -> [B, F]."""
        answers = self.prepared(answers)
        scheduled = self.at(context)
        scores = scheduled.scores(answers)
        return part_state.observe(
            self.parts, ObjectiveInputs(scores, scheduled.rewards(scores), self.beta, self.gamma, answers)
        )

    def update(self, states: Mapping[str, PartState], observed: Mapping[str, Tensor]) -> dict[str, PartState]:
        """States for the loss of a step, from the values observed of all its pairs."""
        return part_state.update(self.parts, states, observed)

    def on_probe(self, states: Mapping[str, PartState], row: Mapping[str, Any]) -> dict[str, PartState]:
        """States after a measurement of the probe, `row` its metrics."""
        return part_state.on_probe(self.parts, states, row)

    def readings(self, context: StepContext) -> dict[str, float]:
        """Metrics of the objective's own, to log: the scheduled parameter and the scalars of the parts' states."""
        bound = self.parts["schedule"]
        value = bound(context, context.states.get("schedule", {}))
        row = {} if value is None else {"train/objective/scheduled": float(value)}
        for kind, state in context.states.items():
            if kind != "schedule":
                row |= {f"train/objective/{name}": float(x) for name, x in state.items() if x.dim() == 0}
        return row

    def at(self, context: StepContext) -> Objective:
        """The same objective with its scheduled parameter at the value of `context`."""
        bound = self.parts["schedule"]
        value = bound(context, context.states.get("schedule", {}))
        if value is None:
            return self
        kind, _, parameter = str(bound.settings["of"]).partition(".")
        return replace(self, parts={**self.parts, kind: self.parts[kind].with_setting(parameter, value)})

    def rewards(self, scores: Tensor) -> Tensor:
        """Rewards r = beta h(s), of the shape of `scores`."""
        return self.beta * self.shape_function(scores, self.score.score_kind)

    def slopes(self, scores: Tensor) -> Tensor:
        """The shape's derivative h'(s) at every score, by automatic differentiation, of the shape of `scores`.

        A step of training is as large as beta h'(s) makes it: at fixed beta, alpha changes how far training goes, too.

        Returns:
            [K, B].
        """
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.shape_function(leaf, self.score.score_kind).sum(), leaf)
        return slope

    @torch.no_grad()
    def reward_rounding(self, answers: AnswerLogProbs) -> Tensor:
        """Bound the rounding error of the rewards: half of their span over the bounds of the log-probs.

        A reward is a monotone function of its answer's summed log-prob. If it reads a reference, whose sums are rounded
        as well and independently, the bounds of the two add in squares.

        Returns:
            [K, B], in units of the reward.
        """
        if not answers.token_rounding:
            return torch.zeros_like(answers.sums)
        answers = self.prepared(answers)
        bound = answers.rounding() * (math.sqrt(2) if self.needs_reference else 1.0)
        high, low = (self.rewards(self.scores(answers.shifted(by))) for by in (bound, -bound))
        return (high - low).abs() / 2

    def compare(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> ObjectiveInputs:
        """What links, margins and weights read of `scores` [K, B]."""
        states = (context or self.start).states
        rewards = self.rewards(scores)
        rounding = 0.0 if answers is None else self.reward_rounding(answers.of_branches())
        c = ObjectiveInputs(
            scores, rewards, self.beta, self.gamma, answers, states.get("margin", {}), rounding=rounding
        )
        return replace(c, offset=self.gamma + self._part("margin", c), state={})

    def preference_loss(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> Tensor:
        """The preference term of the loss as a function of the scores: [K, B] -> [B]."""
        states = (context or self.start).states
        c = self.compare(scores, answers, context)
        loss = self._labelled(replace(c, state=states.get("link", {})))
        factor = self._part("weight", replace(c, state=states.get("weight", {})))
        return self.preference * factor * loss

    def _labelled(self, c: ObjectiveInputs) -> Tensor:
        """Evaluate the link under the label, which may be uncertain.

        The chosen answer is the better one with probability P, that of `label_column` or 1. With e = `label_smoothing`
        the model `smooth` takes the label to be wrong so often (cDPO): P becomes (1 - e) P + e (1 - P). `unbiased` takes
        the labels of the data to have been flipped so often, and undoes it (robust DPO, 2403.00409): P becomes
        [(1 - e) P - e (1 - P)]/(1 - 2e), the P whose smoothed value that of the data is.

        Returns:
            P link(c) + (1 - P) link(c under the opposite label), [B].
        """
        loss = torch.as_tensor(self._part("link", c))
        e = self.label_smoothing
        if self.label_column is None and not e:
            return loss
        right: Tensor | float = 1.0 if self.label_column is None else c.column(self.label_column)
        wrong = 1 - right
        sign, total = (-1, 1 - 2 * e) if self.label_model == "unbiased" else (1, 1)
        right, wrong = ((1 - e) * right + sign * e * wrong) / total, ((1 - e) * wrong + sign * e * right) / total
        return right * loss + wrong * self._part("link", c.swapped())

    def __call__(self, answers: AnswerLogProbs, context: StepContext | None = None) -> PairLoss:
        """Evaluate loss, scores and rewards of a batch.

        Args:
            answers: sums and lengths [K, B]; `reference` if `needs_reference`. bf16 and fp16 are converted to float32.
            context: progress and states; None: those before the first step.

        Returns:
            The loss of each pair and more, in float32 (float64 for float64 input).
        """
        scheduled = self.at(context or self.start)
        answers = self.prepared(answers)
        scores = scheduled.scores(answers)
        rewards = scheduled.rewards(scores)
        both = scores.shape[0] > 1
        loss = scheduled.preference_loss(scores, answers, context) if both else torch.zeros_like(answers.sums[0])
        if self.nll:
            logp = self.nll * answers.sums[0] / self._nll_tokens(answers)
            loss = loss - (logp if answers.present is None else logp * answers.present[0])
        loss = loss + self._part("regulariser", ObjectiveInputs(scores, rewards, self.beta, answers=answers))
        margins = rewards[0] - rewards[1] if both else None
        return PairLoss(loss, scores, rewards, margins, scheduled.reward_rounding(answers))

    def _nll_tokens(self, answers: AnswerLogProbs) -> Tensor | float:
        """Divisor of the chosen side's summed log-prob in the NLL."""
        if self.nll_scope == "sum":
            return 1.0
        if self.nll_scope == "mean":
            return answers.lengths[0]
        if answers.chosen_tokens is None:
            lengths = answers.lengths[0]
            # An absent answer has no tokens, though `to_float32` gives it one; if all are absent, none counts.
            counted = lengths if answers.present is None else lengths * answers.present[0]
            return counted.mean().clamp(min=1 / len(counted))
        return answers.chosen_tokens or 1.0  # a step of undesirable answers has none, and its NLL does not count

    def score_gradients(
        self, scores: Tensor, answers: AnswerLogProbs | None = None, context: StepContext | None = None
    ) -> Tensor:
        """Differentiate the preference term by the scores, per side and pair, without the 1/B of a mean.

        This is the weight with which a pair pulls each side; for AlphaPO -beta e^{-alpha s_w} sigmoid(gamma - m') and
        +beta e^{-alpha s_l} sigmoid(gamma - m'), m' = r_w - r_l. By automatic differentiation, so exact for every shape
        and link. What reads the log-probs past the score counts as constant.

        Returns:
            d loss / d s, [K, B].
        """
        answers = None if answers is None else self.prepared(answers)
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_(True)
            loss = self.at(context or self.start).preference_loss(leaf, answers, context).sum()
            if not loss.requires_grad:  # no preference term
                return torch.zeros_like(scores)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient

"""An objective: score, shape and link put together. The only place where beta and gamma are applied.

s = score(log-probs)            [K, B]   K sides (chosen first), B pairs
r = beta h(s)                   [K, B]   reward
m = r_w - r_l - gamma           [B]
loss = link(m) + nll * NLL_w    [B]      one value a pair; the caller takes the mean
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.logprobs import AnswerLogProbs
from alphapo_cli.objective import link, score, shape  # noqa: F401  (importing them fills the tables)
from alphapo_cli.objective.parts import Part, find
from alphapo_cli.schema import ObjectiveConfig


@dataclass(frozen=True)
class PairLoss:
    """What one evaluation of an objective gives; metrics are taken from these tensors, detached."""

    loss: Tensor  # [B]
    scores: Tensor  # [K, B]
    rewards: Tensor  # [K, B], beta h(s)
    margins: Tensor | None  # [B], chosen minus rejected reward, before gamma; None where no rejected side was given


@dataclass(frozen=True)
class Objective:
    """A point in score x shape x link with its numbers."""

    name: str
    score: Part
    shape: Part
    link: Part
    score_function: Callable[[AnswerLogProbs], Tensor]
    shape_function: Callable[..., Tensor]
    link_function: Callable[..., Tensor]
    beta: float
    gamma: float
    label_smoothing: float
    nll: float

    @property
    def needs_reference(self) -> bool:
        return self.score.needs_reference

    @property
    def needs_rejected(self) -> bool:
        return self.link.needs_rejected

    def rewards(self, scores: Tensor) -> Tensor:
        """r = beta h(s), of any shape."""
        return self.beta * self.shape_function(scores, self.score.score_kind)

    def preference_loss(self, scores: Tensor) -> Tensor:
        """The loss of the preference term alone as a function of the scores: [2, B] -> [B]."""
        r = self.rewards(scores)
        m = r[0] - r[1] - self.gamma
        loss = self.link_function(m, self.beta)
        if self.label_smoothing:
            # cDPO's mixture: the label is wrong with probability label_smoothing.
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * self.link_function(-m, self.beta)
        return loss

    def __call__(self, answers: AnswerLogProbs) -> PairLoss:
        """Loss, scores and rewards of a batch.

        Args:
            answers: sums and lengths [K, B]; `reference` where `needs_reference`. bf16 or fp16 is widened to float32.

        Returns:
            PairLoss in float32 (float64 for float64 input).
        """
        answers = answers.widened()
        scores = self.score_function(answers)
        rewards = self.rewards(scores)
        both = scores.shape[0] > 1
        loss = self.preference_loss(scores) if both else torch.zeros_like(answers.sums[0])
        if self.nll:
            loss = loss - self.nll * answers.sums[0] / answers.lengths[0]
        return PairLoss(loss, scores, rewards, rewards[0] - rewards[1] if both else None)

    def score_gradients(self, scores: Tensor) -> Tensor:
        """d loss / d s of the preference term, per side and pair: [2, B] -> [2, B], without the 1/B of a mean.

        This is the weight with which a pair pulls each side; for AlphaPO -beta e^{-alpha s_w} sigmoid(gamma - m') and
        +beta e^{-alpha s_l} sigmoid(gamma - m'), m' = r_w - r_l. Taken by differentiation, so that it is exact for
        every shape and link.
        """
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_(True)
            loss = self.preference_loss(leaf).sum()
            if not loss.requires_grad:  # no preference term
                return torch.zeros_like(scores)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient


def absolute_gamma(cfg: ObjectiveConfig) -> float:
    """gamma in units of the reward, whichever of the two ways it was given; 0 when neither was.

    Raises:
        ConfigError: both were given.
    """
    if cfg.gamma is not None and cfg.gamma_beta_ratio is not None:
        raise ConfigError(
            "objective.gamma and objective.gamma_beta_ratio are both set: give one (gamma = beta x ratio)"
        )
    if cfg.gamma is not None:
        return cfg.gamma
    return cfg.beta * cfg.gamma_beta_ratio if cfg.gamma_beta_ratio is not None else 0.0


def build(cfg: ObjectiveConfig) -> Objective:
    """The objective that a configuration describes; every parameter is tried once, so a bad value is found here.

    Raises:
        ConfigError: an unknown part or parameter, a value that a part refuses, gamma given twice, or no loss at all.
    """
    parts = {kind: find(kind, getattr(cfg, kind)) for kind in ("score", "shape", "link")}
    if not parts["link"].needs_rejected and not cfg.nll:
        raise ConfigError(
            f"objective.nll=0 with objective/link={parts['link'].name}: no loss is left; set objective.nll above 0 or choose another link"
        )
    objective = Objective(
        name=cfg.name,
        **parts,
        score_function=parts["score"].bind(cfg.score),
        shape_function=parts["shape"].bind(cfg.shape),
        link_function=parts["link"].bind(cfg.link),
        beta=cfg.beta,
        gamma=absolute_gamma(cfg),
        label_smoothing=cfg.label_smoothing,
        nll=cfg.nll,
    )
    trial = torch.full((2, 1), -1.0)
    objective(AnswerLogProbs(sums=trial, lengths=torch.ones_like(trial), reference=trial))
    return objective

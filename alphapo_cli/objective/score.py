"""Scores: one number per answer, s, from its log-probs. [K, B] in, [K, B] out; K sides (chosen first), B pairs.

Public implementations differ in sum or mean, and results are not comparable across that line, so the choice is a
named part and never a flag.
"""

from __future__ import annotations

from torch import Tensor

from alphapo_cli.logprobs import AnswerLogProbs
from alphapo_cli.objective.parts import register


@register("score")
def mean(answers: AnswerLogProbs) -> Tensor:
    """Mean log-prob per token, s = L/n. The reward of SimPO (2405.14734, eq. 4) and of AlphaPO (2501.03884)."""
    return answers.sums / answers.lengths


@register("score")
def sum_(answers: AnswerLogProbs) -> Tensor:
    """Summed log-prob, s = L. CPO (2401.08417, eq. 3)."""
    return answers.sums


@register("score", needs_reference=True, score_kind="log_ratio")
def ratio_sum(answers: AnswerLogProbs) -> Tensor:
    """Summed log-ratio to the reference, s = L - R. DPO (2305.18290, eq. 7) and IPO as its equation 17 has it."""
    return answers.log_ratio()


@register("score", needs_reference=True, score_kind="log_ratio")
def ratio_mean(answers: AnswerLogProbs) -> Tensor:
    """Mean log-ratio per token, s = (L - R)/n. The length-normalised IPO that TRL and HALOs train."""
    return answers.log_ratio() / answers.lengths

"""Scores: one number per answer, s, from its log-probs; K sides (chosen first) of B pairs, to [K, B].

Public implementations differ in sum or mean, and results are not comparable between the two, so the choice is a named
part and never a flag. Names of scores that compare with a reference begin with ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.part import register

# Mean log-prob above which `odds` continues along its tangent: at p = 1 the odds are infinite. The slope there, 1024,
# times those of a power shape (1.1e13) and beta can still be squared in float32.
ODDS_LINEAR_FROM = -(2.0**-10)


@register("score", divides=True)
def mean(answers: AnswerLogProbs) -> Tensor:
    """Mean log-prob per token, s = L/n. The reward of SimPO (2405.14734, eq. 4) and of AlphaPO (2501.03884)."""
    return answers.sums / answers.lengths


@register("score")
def sum_(answers: AnswerLogProbs) -> Tensor:
    """Summed log-prob, s = L. CPO (2401.08417, eq. 3)."""
    return answers.sums


@register("score", score_kind="log_ratio", divides=True)
def odds(answers: AnswerLogProbs) -> Tensor:
    """Log-odds of the per-token mean a = L/n: ORPO (2403.07691), ASFT (2409.10571).

    The odds are the ratio of p to 1 - p, so a power shape takes the ratio convention. Beyond `ODDS_LINEAR_FROM` the
    function continues along its tangent.

    Returns:
        s = a - log(1 - e^a), [K, B].
    """
    a = answers.sums / answers.lengths
    inner = a.clamp(max=ODDS_LINEAR_FROM)
    rest = -torch.expm1(inner)  # 1 - p
    # Inside, a - inner is exactly 0; outside, inner is constant and the slope 1/(1 - p).
    return inner - rest.log() + (a - inner) / rest.detach()


@register("score", needs_reference=True, score_kind="log_ratio")
def ratio_sum(answers: AnswerLogProbs) -> Tensor:
    """Summed log-ratio to the reference, s = L - R. DPO (2305.18290, eq. 7) and IPO as its equation 17 has it."""
    return answers.log_ratio()


@register("score", needs_reference=True, score_kind="log_ratio", divides=True)
def ratio_mean(answers: AnswerLogProbs) -> Tensor:
    """Mean log-ratio per token, s = (L - R)/n. The length-normalised IPO that TRL and HALOs train."""
    return answers.log_ratio() / answers.lengths


@register("score", needs_reference=True, score_kind="log_ratio")
def ratio_entropy(answers: AnswerLogProbs, *, alpha: float = 0.95) -> Tensor:
    """H-DPO (2411.07595): the policy's entropy counts alpha times in the divergence.

    alpha below 1 makes the policy sharper; alpha = 1 is `ratio_sum`.

    Returns:
        s = alpha L - R, [K, B].
    """
    return answers.log_ratio() if alpha == 1 else answers.log_ratio() - (1 - alpha) * answers.sums


# Summed log-probs of each answer under a second reference: columns of the data, or computed with `model.guide`.
GUIDE = "guide_{}_logp"


@register(
    "score", needs_reference=True, score_kind="log_ratio", limits={"weight": {"ge": 0, "le": 1}, "clip": {"ge": 0}},
    columns=(GUIDE.format("chosen"), GUIDE.format("rejected")),
)  # fmt: skip
def ratio_mixed(answers: AnswerLogProbs, *, weight: float = 0.5, clip: float = 0.1) -> Tensor:
    """MRPO (2405.16388): log-ratio to the harmonic mean of two references.

    R' is the second reference's log-prob, clipped to R (1 -+ clip). Equal references, or weight = 0, give `ratio_sum`.
    `weight` is 1 - alpha of the authors' code.

    Returns:
        s = L - V, V = -log[(1 - weight) e^{-R} + weight e^{-R'}], [K, B].
    """
    reference = answers.given_reference()
    reach = clip * reference.abs()
    second = answers.column_of_sides(GUIDE).clamp(reference - reach, reference + reach)
    both = torch.stack([-reference, -second])
    share = torch.tensor([1 - weight, weight], dtype=both.dtype, device=both.device).log()
    return answers.sums + torch.logsumexp(both + share[:, None, None], 0)

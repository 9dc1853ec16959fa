"""Links that read all K scored answers of a row: rewards [K, B] against the scores in the data, to a loss [B].

They do not read gamma, a margin part or an uncertain label. On pairs with scores they run with K = 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.part import register

_LIST: dict[str, Any] = {"sides": None, "reads_margin": False, "columns": ("score_chosen", "score_rejected")}


def _log_targets(c: ObjectiveInputs, temperature: float) -> Tensor:
    """Log-softmax of score/temperature over the answers, [K, B]."""
    if not temperature > 0:
        raise ConfigError(f"objective.link.temperature={temperature}: must be above 0")
    return F.log_softmax(c.columns_of_sides("score") / temperature, 0)


def _surprise(logits: Tensor, among: Tensor) -> Tensor:
    """-log of the share of softmax(logits) that falls on the answers `among`.

    Through the odds, not the share: near 1 a share keeps no digit of what it lacks.

    Args:
        logits: [K, B].
        among: [K, B] bool, at least one of each row.

    Returns:
        [B], at least 0.
    """
    least = torch.finfo(logits.dtype).min  # not -inf, whose logsumexp has no gradient
    inside, outside = (torch.logsumexp(logits.masked_fill(~part, least), 0) for part in (among, ~among))
    return F.softplus(outside - inside)


@register("link", **_LIST)
def infonca(c: ObjectiveInputs, *, temperature: float = 1e-4) -> Tensor:
    """InfoNCA (2402.05369): cross-entropy to t = softmax(score/temperature) over the answers.

    The default temperature is that of the authors' configuration: hard targets. With them K = 2 is `logistic`.

    Returns:
        -sum_i t_i log softmax(r)_i, [B].
    """
    answers = torch.eye(len(c.rewards), dtype=torch.bool, device=c.rewards.device).unsqueeze(-1)
    surprises = torch.stack([_surprise(c.rewards, one.expand_as(c.rewards)) for one in answers])
    return (_log_targets(c, temperature).exp() * surprises).sum(0)


@register("link", **_LIST)
def nca_list(c: ObjectiveInputs, *, temperature: float = 1e-4) -> Tensor:
    """NCA (2402.05369) on K answers, with t as in `infonca`; with hard targets K = 2 is `nca`.

    Returns:
        -sum_i t_i log sigmoid(r_i) - (1/K) sum_i log sigmoid(-r_i), [B].
    """
    pulled = _log_targets(c, temperature).exp() * F.logsigmoid(c.rewards)
    return -pulled.sum(0) - F.logsigmoid(-c.rewards).mean(0)


@register("link", **_LIST)
def exo_list(c: ObjectiveInputs, *, temperature: float = 1.0) -> Tensor:
    """EXO (2402.00856) on K answers: KL of q = softmax(r) to t = softmax(score/temperature).

    K = 2 is `exo` if the scores differ by temperature log((1 - epsilon)/epsilon).

    Returns:
        sum_i q_i (log q_i - log t_i), [B].
    """
    log_q = F.log_softmax(c.rewards, 0)
    return (log_q.exp() * (log_q - _log_targets(c, temperature))).sum(0)


@register("link", **_LIST)
def swepo(c: ObjectiveInputs, *, alpha: float = 1.0, power: float = 1.0) -> Tensor:
    """SWEPO (2412.04628): answers above the row's mean score, and the best, against all answers.

    Weights are w_i = e^{alpha |score_i - mean|^power}. K = 2 with alpha = 0 is `logistic`.

    Returns:
        -log[sum_{i above} w_i e^{r_i} / sum_i w_i e^{r_i}], [B].

    Raises:
        ConfigError: power is not above 0.
    """
    if not power > 0:
        raise ConfigError(f"objective.link.power={power}: must be above 0")
    scores = c.columns_of_sides("score")
    mean = scores.mean(0)
    weighted = c.rewards + alpha * (scores - mean).abs() ** power
    good = (scores > mean) | (scores == scores.amax(0))
    return _surprise(weighted, good)

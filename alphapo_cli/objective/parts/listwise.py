"""Links that read all K scored answers of a row, [K, B] rewards against the scores that came with them.

gamma, a margin part and an uncertain label have no place in them. On pairs with scores they run with K = 2.
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
    """log softmax(score/temperature) over the answers, [K, B]."""
    if not temperature > 0:
        raise ConfigError(f"objective.link.temperature={temperature}: must be above 0")
    return F.log_softmax(c.columns_of_sides("score") / temperature, 0)


@register("link", **_LIST)
def infonca(c: ObjectiveInputs, *, temperature: float = 1e-4) -> Tensor:
    """-sum_i t_i log softmax(r)_i, t = softmax(score/temperature): InfoNCA (2402.05369).

    The default temperature is that of the authors' configuration: hard targets. With them K = 2 is `logistic`.
    """
    return -(_log_targets(c, temperature).exp() * F.log_softmax(c.rewards, 0)).sum(0)


@register("link", **_LIST)
def nca_list(c: ObjectiveInputs, *, temperature: float = 1e-4) -> Tensor:
    """-sum_i t_i log sigmoid(r_i) - (1/K) sum_i log sigmoid(-r_i): NCA (2402.05369), t as in `infonca`.

    With hard targets K = 2 is `nca`.
    """
    pulled = _log_targets(c, temperature).exp() * F.logsigmoid(c.rewards)
    return -pulled.sum(0) - F.logsigmoid(-c.rewards).mean(0)


@register("link", **_LIST)
def exo_list(c: ObjectiveInputs, *, temperature: float = 1.0) -> Tensor:
    """KL of q = softmax(r) to t = softmax(score/temperature): EXO (2402.00856) on K answers.

    K = 2 is `exo` where the scores differ by temperature log((1 - epsilon)/epsilon).
    """
    log_q = F.log_softmax(c.rewards, 0)
    return (log_q.exp() * (log_q - _log_targets(c, temperature))).sum(0)


@register("link", **_LIST)
def mpo(c: ObjectiveInputs, *, alpha: float = 1.0, power: float = 1.0) -> Tensor:
    """-log[sum_{i in +} w_i e^{r_i} / sum_i w_i e^{r_i}], w_i = e^{alpha |score_i - mean|^power}: MPO/SWEPO (2412.04628).

    + are the answers above the row's mean score, and the best. K = 2 with alpha = 0 is `logistic`.
    """
    if not power > 0:
        raise ConfigError(f"objective.link.power={power}: must be above 0")
    scores = c.columns_of_sides("score")
    mean = scores.mean(0)
    weighted = c.rewards + alpha * (scores - mean).abs() ** power
    good = (scores > mean) | (scores == scores.amax(0))
    return torch.logsumexp(weighted, 0) - torch.logsumexp(weighted.masked_fill(~good, -torch.inf), 0)

"""Links that read the margin m = r_w - r_l - gamma: a per-pair loss. See `pointwise` for those that read each reward.

A link takes a `ObjectiveInputs` and gives [B]. It may ask for beta because some losses are stated in units of the unscaled
reward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.numerics import SQUARED_LINEAR_FROM, box_cox, square
from alphapo_cli.objective.part import register


@register("link")
def logistic(c: ObjectiveInputs) -> Tensor:
    """-log sigmoid(m), the Bradley-Terry likelihood: DPO, SimPO, AlphaPO, CPO."""
    return -F.logsigmoid(c.margin)


@register("link")
def hinge(c: ObjectiveInputs, *, delta: float = 1.0) -> Tensor:
    """max(0, delta - m): RSO (2309.06657, eq. 9) and, on summed log-probs, SLiC-HF (2305.10425)."""
    return torch.relu(delta - c.margin)


@register("link")
def squared(c: ObjectiveInputs) -> Tensor:
    """(m/beta - 1/(2 beta))^2: IPO (2310.12036, eq. 17) with tau = beta."""
    return square(c.margin / c.beta - 0.5 / c.beta)


@register("link", needs_rejected=False)
def none(c: ObjectiveInputs) -> Tensor:
    """No preference term: what is left is the NLL, that is supervised fine-tuning on the chosen side."""
    return torch.zeros_like(c.margin)


@register("link")
def exo(c: ObjectiveInputs, *, epsilon: float = 1e-3) -> Tensor:
    """KL of the policy's preference q = sigmoid(m) to a label wrong with probability epsilon: EXO (2402.00856, eq. 16).

    q [log q - log(1 - epsilon)] + (1 - q) [log(1 - q) - log epsilon]. The authors' code takes -10 for log epsilon and
    no log(1 - epsilon).
    """
    if not 0 < epsilon < 1:
        raise ConfigError(f"objective.link.epsilon={epsilon}: must be above 0 and below 1")
    m = c.margin
    right = torch.sigmoid(m) * (F.logsigmoid(m) - math.log1p(-epsilon))
    return right + torch.sigmoid(-m) * (F.logsigmoid(-m) - math.log(epsilon))


@register("link")
def discopop(c: ObjectiveInputs, *, tau: float = 0.05) -> Tensor:
    """(1 - w) (-log sigmoid(m)) + w e^{-m}, w = sigmoid(m/tau): DiscoPOP (2406.08414, eq. 5).

    e^{-m} goes on straight from -m = 30, where w has long been 0 unless tau is large.
    """
    if not tau > 0:
        raise ConfigError(f"objective.link.tau={tau}: must be above 0")
    m = c.margin
    exponential = 1 - box_cox(m, -1.0)
    return torch.sigmoid(-m / tau) * -F.logsigmoid(m) + torch.sigmoid(m / tau) * exponential


@register("link", limits={"power": {"ge": 0}})
def focal(c: ObjectiveInputs, *, power: float = 0.05) -> Tensor:
    """-p^power log p, p = sigmoid(m): FocalPO (2501.06645) turns the focal loss round and trusts pairs already ranked.

    The factor has a gradient here; the paper's code is not public. power = 0 is `logistic`.
    """
    log_p = F.logsigmoid(c.margin)
    return -torch.exp(power * log_p) * log_p if power else -log_p


@register("link", columns=("score_chosen", "score_rejected"))
def reward_gap(c: ObjectiveInputs, *, eta: float = 1.0, distance: str = "squared") -> Tensor:
    """Distance from m to the scores' gap t = eta (score_w - score_l): reward-aware RPO (2502.00203).

    `squared`: (m - t)^2. `target_model`: KL of Bernoulli sigmoid(t) to sigmoid(m). `model_target`: the KL the other
    way round.
    """
    if distance not in ("squared", "target_model", "model_target"):
        raise ConfigError(f"objective.link.distance={distance}: choose squared, target_model or model_target")
    m, t = c.margin, eta * (c.column("score_chosen") - c.column("score_rejected"))
    if distance == "squared":
        return square(m - t, SQUARED_LINEAR_FROM / max(c.beta, 1.0))  # m carries beta
    a, b = (t, m) if distance == "target_model" else (m, t)
    up = torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
    return up + torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))

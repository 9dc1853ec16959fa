"""Links that read the margin m = r_w - r_l - gamma; see `pointwise` for those that read each reward.

A link maps `ObjectiveInputs` to the loss of each pair, [B]. It may read beta, as some losses are stated in units of the
unscaled reward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.inputs import ObjectiveInputs
from alphapo_cli.objective.numerics import SQUARED_LINEAR_FROM, exponential, square
from alphapo_cli.objective.part import register


@register("link")
def logistic(c: ObjectiveInputs) -> Tensor:
    """DPO, SimPO, AlphaPO, CPO: -log sigmoid(m), the Bradley-Terry likelihood."""
    return -F.logsigmoid(c.margin)


@register("link")
def hinge(c: ObjectiveInputs, *, delta: float = 1.0) -> Tensor:
    """RSO (2309.06657, eq. 9) and, on summed log-probs, SLiC-HF (2305.10425): max(0, delta - m)."""
    return torch.relu(delta - c.margin)


@register("link")
def squared(c: ObjectiveInputs) -> Tensor:
    """IPO (2310.12036, eq. 17) with tau = beta: (m/beta - 1/(2 beta))^2."""
    return square(c.margin / c.beta - 0.5 / c.beta)


@register("link", needs_rejected=False, reads_margin=False)
def none(c: ObjectiveInputs) -> Tensor:
    """No preference term: what is left is the NLL, so supervised fine-tuning on the chosen side."""
    return torch.zeros_like(c.margin)


@register("link")
def exo(c: ObjectiveInputs, *, epsilon: float = 1e-3) -> Tensor:
    """EXO (2402.00856, eq. 16): KL of the policy's preference q = sigmoid(m) to a label wrong with probability epsilon.

    The authors' code takes -10 for log epsilon and no log(1 - epsilon).

    Returns:
        q [log q - log(1 - epsilon)] + (1 - q) [log(1 - q) - log epsilon], [B].

    Raises:
        ConfigError: epsilon is not between 0 and 1.
    """
    if not 0 < epsilon < 1:
        raise ConfigError(f"objective.link.epsilon={epsilon}: must be above 0 and below 1")
    m = c.margin
    right = torch.sigmoid(m) * (F.logsigmoid(m) - math.log1p(-epsilon))
    return right + torch.sigmoid(-m) * (F.logsigmoid(-m) - math.log(epsilon))


@register("link")
def discopop(c: ObjectiveInputs, *, tau: float = 0.05) -> Tensor:
    """DiscoPOP (2406.08414, eq. 5): logistic and exponential loss, mixed by w = sigmoid(m/tau).

    e^{-m} continues as a straight line from -m = 30, where w has long been 0 unless tau is large.

    Returns:
        (1 - w) (-log sigmoid(m)) + w e^{-m}, [B].

    Raises:
        ConfigError: tau is not above 0.
    """
    if not tau > 0:
        raise ConfigError(f"objective.link.tau={tau}: must be above 0")
    m = c.margin
    return torch.sigmoid(-m / tau) * -F.logsigmoid(m) + torch.sigmoid(m / tau) * exponential(-m)


@register("link", limits={"power": {"ge": 0}})
def focal(c: ObjectiveInputs, *, power: float = 0.05) -> Tensor:
    """FocalPO (2501.06645) reverses the focal loss, so that pairs already ranked count more; p = sigmoid(m).

    The factor has a gradient here; the paper's code is not public. power = 0 is `logistic`.

    Returns:
        -p^power log p, [B].
    """
    log_p = F.logsigmoid(c.margin)
    return -torch.exp(power * log_p) * log_p if power else -log_p


@register("link", columns=("score_chosen", "score_rejected"))
def reward_gap(c: ObjectiveInputs, *, eta: float = 1.0, distance: str = "squared") -> Tensor:
    """Reward-aware RPO (2502.00203): distance from m to the gap of the scores, t = eta (score_w - score_l).

    Args:
        c: margins, and the columns score_chosen and score_rejected.
        eta: scale of the scores' gap.
        distance: `squared`: (m - t)^2. `target_model`: KL of Bernoulli sigmoid(t) to sigmoid(m). `model_target`: the
            KL the other way round.

    Returns:
        The distance, [B].

    Raises:
        ConfigError: the distance is none of these.
    """
    if distance not in ("squared", "target_model", "model_target"):
        raise ConfigError(f"objective.link.distance={distance}: choose squared, target_model or model_target")
    m, t = c.margin, eta * (c.column("score_chosen") - c.column("score_rejected"))
    if distance == "squared":
        return square(m - t, SQUARED_LINEAR_FROM / max(c.beta, 1.0))  # m carries beta
    a, b = (t, m) if distance == "target_model" else (m, t)
    up = torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
    return up + torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))

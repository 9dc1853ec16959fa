"""Links: a per-pair loss from the margin m = r_w - r_l - gamma, where r = beta h(s). [B] in, [B] out.

A link sees beta because some are stated in units of the unscaled reward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.objective.parts import register

# |m/beta - 1/(2 beta)| from which `squared` goes on as a straight line. An ordinary log-ratio gap stays far below;
# it keeps the product of this slope and of a power shape's (1.1e13) small enough to be squared in float32.
SQUARED_LINEAR_FROM = 1e5


@register("link")
def logistic(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(m), the Bradley-Terry likelihood: DPO, SimPO, AlphaPO, CPO."""
    return -F.logsigmoid(margin)


@register("link")
def hinge(margin: Tensor, beta: float, *, delta: float = 1.0) -> Tensor:
    """max(0, delta - m): RSO (2309.06657, eq. 9) and, on summed log-probs, SLiC-HF (2305.10425)."""
    return torch.relu(delta - margin)


@register("link")
def squared(margin: Tensor, beta: float) -> Tensor:
    """(m/beta - 1/(2 beta))^2: IPO (2310.12036, eq. 17) with tau = beta."""
    gap = margin / beta - 0.5 / beta
    inner = gap.clamp(-SQUARED_LINEAR_FROM, SQUARED_LINEAR_FROM)
    return inner * (2 * gap - inner)  # gap^2 inside; the tangent outside


@register("link", needs_rejected=False)
def none(margin: Tensor, beta: float) -> Tensor:
    """No preference term: what is left is the NLL, that is supervised fine-tuning on the chosen side."""
    return torch.zeros_like(margin)

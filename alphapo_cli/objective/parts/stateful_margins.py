"""Margins, and the weight of beta-DPO, that follow statistics of earlier optimizer steps.

Everything here that is not the pair's own reward is without gradient, as in the authors' code. Statistics are those of
the whole optimizer step, this one included; `alphapo loss` stands before the first step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.objective.inputs import ObjectiveInputs, PartState
from alphapo_cli.objective.part import StatefulPart, register

MOMENTS = {"momentum": {"ge": 0, "lt": 1}, "spread": {"gt": 0}}  # of exponential means; see `_moments`


def _moments_begin(*, mean: float, spread: float, **_: Any) -> dict[str, float | Tensor]:
    return {"gap_mean": mean, "gap_spread": spread}


def _moments(state: PartState, gaps: Tensor, momentum: float) -> PartState:
    """Exponential means of the step's mean and standard deviation; one pair alone has no deviation."""
    spread = gaps.std() if len(gaps) > 1 else state["gap_spread"]
    return {
        "gap_mean": momentum * state["gap_mean"] + (1 - momentum) * gaps.mean(),
        "gap_spread": momentum * state["gap_spread"] + (1 - momentum) * spread,
    }


def _reference_gap(c: ObjectiveInputs) -> Tensor:
    """(a_w - a_l) less the same of the reference, per token: [B]."""
    answers = c.given.counted()
    ratio = answers.log_ratio() / answers.lengths
    return ratio[0] - ratio[1]


def _instance_update(state: PartState, values: Tensor, *, momentum: float, **_: Any) -> PartState:
    return _moments(state, values[:, 0], momentum)


@register(
    "margin", needs_reference=True, limits=MOMENTS,
    stateful=StatefulPart(_moments_begin, lambda c, **_: _reference_gap(c).unsqueeze(1), _instance_update),
)  # fmt: skip
def instance(
    c: ObjectiveInputs, *, alpha: float = 0.05, momentum: float = 0.9, mean: float = 0.0, spread: float = 1.0
) -> Tensor:
    """beta alpha (g - M)/S without gradient, g the gap's lead over the reference's per token: alpha-DPO (2410.10148).

    M and S are exponential means of the steps' mean and standard deviation of g. They begin at `mean` and `spread`; the
    authors' begin at 0 and 0, which makes their first steps' margins larger. alpha = 0 is none.
    """
    m, s = c.state["gap_mean"].to(c.rewards), c.state["gap_spread"].to(c.rewards)
    return (c.beta * alpha * (_reference_gap(c) - m) / s).detach()


def _queue_begin(**_: Any) -> dict[str, float | Tensor]:
    return {"log_normalisers": torch.zeros(0), "queue": torch.zeros(0), "population": 1.0}


def _queue_observe(c: ObjectiveInputs, **_: Any) -> Tensor:
    gap = c.rewards[0] - c.rewards[1]
    return torch.stack([gap, torch.full_like(gap, float(c.offset))], dim=1)


def _share_step(share: Tensor, gaps: Tensor, gamma: Tensor | float, tau: float) -> Tensor:
    """log(n p) after one step, before it is normalised, from `share` = log(n p); n pairs share the margin, each p of it.

    In logarithms: a step of a large gamma takes p itself below what float32 holds.
    """
    slope = tau * (1 + share) + gamma * torch.sigmoid(gamma * share.exp() - gaps)
    return share - min(0.5 / tau, 1.0) * slope


def _queue_update(state: PartState, values: Tensor, *, tau: float, steps: int, size: int, **_: Any) -> PartState:
    gaps, gamma = values[:, 0], values[0, 1]
    queue = state["queue"]
    room = max(0, min(size - len(gaps), len(queue)))
    # Spread evenly over the queue: the authors draw at random, which a resumed run could not repeat.
    sampled = queue[torch.linspace(0, len(queue) - 1, room).round().long()] if room else queue[:0]
    everyone = torch.cat([sampled, gaps])
    share, normalisers = torch.zeros_like(everyone), []
    for _step in range(steps):
        share = _share_step(share, everyone, gamma, tau)
        normalisers.append(share.logsumexp(0) - math.log(len(everyone)))
        share = share - normalisers[-1]
    return {
        "log_normalisers": torch.stack(normalisers) if normalisers else torch.zeros(0, dtype=torch.float64),
        "queue": torch.cat([queue, gaps])[-2048:],
        "population": torch.tensor(float(len(everyone)), dtype=torch.float64),  # to be logged
    }


@register(
    "margin", limits={"tau": {"gt": 0}, "steps": {"ge": 0}, "size": {"ge": 0}},
    stateful=StatefulPart(_queue_begin, _queue_observe, _queue_update),
)  # fmt: skip
def shared(c: ObjectiveInputs, *, tau: float = 10.0, steps: int = 20, size: int = 256) -> Tensor:
    """gamma n p - gamma without gradient: pairs share the margin gamma unequally, gamma-PO (2506.03690).

    The shares p of n pairs (this step's, and up to `size` with earlier ones) minimise
    mean(-log sigmoid(gap - gamma n p)) + tau KL(p || uniform) by `steps` exponentiated-gradient steps. All pairs share
    the steps' normalisers, from which each finds its own share. Before the first step all are equal: none.
    """
    gamma, gaps = float(c.offset), (c.rewards[0] - c.rewards[1]).detach()
    share = torch.zeros_like(gaps)
    for total in c.state["log_normalisers"].to(gaps):
        share = _share_step(share, gaps, gamma, tau) - total
    return gamma * share.exp() - gamma


# ----------------------------------------------------------------------------------------- beta-DPO


def _noise(index: Tensor, step: Tensor) -> Tensor:
    """Standard Gumbel noise of a pair at a step, [B] float64: the same wherever and whenever it is asked for."""
    mixed = (index.double() * 12.9898 + step.double() * 78.233 + 4.1).sin() * 43758.5453
    uniform = (mixed - mixed.floor()).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform))


def _keys(state: PartState, gaps: Tensor, index: Tensor) -> Tensor:
    """Sampling without replacement with weights w keeps those of the largest log w + Gumbel noise."""
    z = (gaps.double() - state["gap_mean"].to(gaps.device)) / state["gap_spread"].to(gaps.device)
    return -0.5 * z**2 + _noise(index, state["step"].to(gaps.device))


def _index(c: ObjectiveInputs) -> Tensor:
    index = c.given.index
    return torch.arange(c.scores.shape[1], device=c.scores.device) if index is None else index


def _gaps(c: ObjectiveInputs) -> Tensor:
    return (c.unscaled[0] - c.unscaled[1]).detach()


def _batch_begin(*, mean: float, spread: float, **_: Any) -> dict[str, float | Tensor]:
    return {"gap_mean": mean, "gap_spread": spread, "factor": 1.0, "threshold": -1e30, "kept": 1.0, "step": 0.0}


def _batch_observe(c: ObjectiveInputs, **_: Any) -> Tensor:
    gaps = _gaps(c).double()
    return torch.stack([gaps, _index(c).double(), torch.full_like(gaps, c.beta)], dim=1)


def _batch_update(
    state: PartState, values: Tensor, *, drop: float, momentum: float, scale: float = 0.0, **_: Any
) -> PartState:
    gaps, index, beta = values[:, 0], values[:, 1], values[0, 2]
    moved = {**state, **_moments(state, gaps, momentum), "step": state["step"] + 1}
    keys = _keys(moved, gaps, index)
    count = max(1, int(len(keys) * (1 - drop)))
    order = keys.sort(descending=True).values
    # Half way to the next key, so that round-off never decides.
    below = order[count] if count < len(order) else order[-1] - 2
    threshold = (order[count - 1] + below) / 2
    used = gaps[keys > threshold].mean()
    factor = (1 + scale * (used - moved["gap_mean"])).clamp(min=float(1e-3 / beta))
    return {
        **moved,
        "threshold": threshold,
        "factor": factor,
        "kept": torch.tensor(count / len(keys), dtype=torch.float64),
    }


_BATCH = StatefulPart(_batch_begin, _batch_observe, _batch_update)
_BATCH_LIMITS = {**MOMENTS, "drop": {"ge": 0, "lt": 1}}


@register("margin", stateful=_BATCH, limits=_BATCH_LIMITS)
def batch_beta(
    c: ObjectiveInputs, *, scale: float = 0.6, drop: float = 0.2, momentum: float = 0.9, mean: float = 0.0,
    spread: float = 1.0,
) -> Tensor:  # fmt: skip
    """m = (beta_b/beta)(r_w - r_l), beta_b = max(1e-3, beta (1 + scale (mean kept gap - M))): beta-DPO (2407.08639).

    M and S as in `instance`, of the log-ratios' gap; which pairs are kept, see the weight `kept`.
    """
    return (1 - c.state["factor"].to(c.rewards)) * (c.rewards[0] - c.rewards[1])


@register("weight", stateful=_BATCH, limits=_BATCH_LIMITS)
def kept(
    c: ObjectiveInputs, *, drop: float = 0.2, momentum: float = 0.9, mean: float = 0.0, spread: float = 1.0
) -> Tensor:
    """1/share for the share 1 - drop of a step's pairs that is kept, 0 for the others: beta-DPO (2407.08639).

    Sampled without replacement with weights exp(-((gap - M)/S)^2/2); the draw depends on pair and step alone.
    """
    chosen = _keys(c.state, _gaps(c), _index(c)) > c.state["threshold"].to(c.scores.device)
    return chosen.to(c.scores) / c.state["kept"].to(c.scores)

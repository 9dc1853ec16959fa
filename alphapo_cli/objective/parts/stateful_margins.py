"""Margins, and the weight of beta-DPO, that follow statistics of earlier optimizer steps.

Everything here but the pair's own reward is without gradient, as in the authors' code. Statistics are those of the
whole optimizer step, this one included; `alphapo loss` evaluates with the state before the first step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.objective import counter_rng
from alphapo_cli.objective.inputs import ObjectiveInputs, PartState
from alphapo_cli.objective.part import StatefulPart, register

MOMENTS = {"momentum": {"ge": 0, "lt": 1}, "spread": {"gt": 0}}  # of exponential moving averages; see `_moments`


def _moments_initial(*, mean: float, spread: float, **_: Any) -> dict[str, float | Tensor]:
    return {"gap_mean": mean, "gap_spread": spread}


def _moments(state: PartState, gaps: Tensor, momentum: float) -> PartState:
    """Update the exponential moving averages of the steps' mean and standard deviation; one pair has no deviation."""
    spread = gaps.std() if len(gaps) > 1 else state["gap_spread"]
    return {
        "gap_mean": momentum * state["gap_mean"] + (1 - momentum) * gaps.mean(),
        "gap_spread": momentum * state["gap_spread"] + (1 - momentum) * spread,
    }


def _reference_gap(c: ObjectiveInputs) -> Tensor:
    """Return (a_w - a_l) minus the same of the reference, [B] nats per token."""
    answers = c.log_probs.with_token_weights()
    ratio = answers.log_ratio() / answers.lengths
    return ratio[0] - ratio[1]


def _instance_update(state: PartState, values: Tensor, *, momentum: float, **_: Any) -> PartState:
    return _moments(state, values[:, 0], momentum)


@register(
    "margin", needs_reference=True, limits=MOMENTS, divides=True,
    stateful=StatefulPart(_moments_initial, lambda c, **_: _reference_gap(c).unsqueeze(1), _instance_update),
)  # fmt: skip
def instance(
    c: ObjectiveInputs, *, alpha: float = 0.05, momentum: float = 0.9, mean: float = 0.0, spread: float = 1.0
) -> Tensor:
    """Alpha-DPO (2410.10148): a margin for each pair from its gap g to the reference's, per token.

    M and S are exponential moving averages of the steps' mean and standard deviation of g. They start at `mean` and
    `spread`; the authors' start at 0 and 0, which makes their first steps' margins larger. alpha = 0 is none.

    Returns:
        beta alpha (g - M)/S without gradient, [B].
    """
    m, s = c.state["gap_mean"].to(c.rewards), c.state["gap_spread"].to(c.rewards)
    return (c.beta * alpha * (_reference_gap(c) - m) / s).detach()


def _queue_initial(**_: Any) -> dict[str, float | Tensor]:
    return {"log_normalisers": torch.zeros(0), "queue": torch.zeros(0), "population": 1.0}


def _queue_observe(c: ObjectiveInputs, **_: Any) -> Tensor:
    gap = c.rewards[0] - c.rewards[1]
    return torch.stack([gap, torch.full_like(gap, float(c.offset))], dim=1)


def _share_step(share: Tensor, gaps: Tensor, gamma: Tensor | float, tau: float) -> Tensor:
    """One exponentiated-gradient step on `share` = log(n p), before normalisation; each of n pairs has the share p.

    In logarithms: a step of a large gamma takes p itself below what float32 holds.

    Returns:
        The new log(n p), [n].
    """
    slope = tau * (1 + share) + gamma * torch.sigmoid(gamma * share.exp() - gaps)
    return share - min(0.5 / tau, 1.0) * slope


def _queue_update(state: PartState, values: Tensor, *, tau: float, steps: int, size: int, **_: Any) -> PartState:
    gaps, gamma = values[:, 0], values[0, 1]
    queue = state["queue"]
    reused = max(0, min(size - len(gaps), len(queue)))
    # Evenly spaced over the queue, where the authors draw at random: as good a sample, and the same in every run.
    sampled = queue[torch.linspace(0, len(queue) - 1, reused).round().long()] if reused else queue[:0]
    pool = torch.cat([sampled, gaps])
    share, normalisers = torch.zeros_like(pool), []
    for _step in range(steps):
        share = _share_step(share, pool, gamma, tau)
        normalisers.append(share.logsumexp(0) - math.log(len(pool)))
        share = share - normalisers[-1]
    return {
        "log_normalisers": torch.stack(normalisers) if normalisers else torch.zeros(0, dtype=torch.float64),
        "queue": torch.cat([queue, gaps])[-2048:],
        "population": torch.tensor(float(len(pool)), dtype=torch.float64),  # to be logged
    }


@register(
    "margin", limits={"tau": {"gt": 0}, "steps": {"ge": 0}, "size": {"ge": 0}},
    stateful=StatefulPart(_queue_initial, _queue_observe, _queue_update),
)  # fmt: skip
def shared(c: ObjectiveInputs, *, tau: float = 10.0, steps: int = 20, size: int = 256) -> Tensor:
    """Gamma-PO (2506.03690): pairs share the margin gamma unequally.

    The shares p of n pairs (this step's, and up to `size` with earlier ones) minimise
    mean(-log sigmoid(gap - gamma n p)) + tau KL(p || uniform) by `steps` exponentiated-gradient steps. The state keeps
    the steps' normalisers, from which the share of any pair follows. Before the first step all shares are equal: none.

    Returns:
        gamma n p - gamma without gradient, [B].
    """
    gamma, gaps = float(c.offset), (c.rewards[0] - c.rewards[1]).detach()
    share = torch.zeros_like(gaps)
    for total in c.state["log_normalisers"].to(gaps):
        share = _share_step(share, gaps, gamma, tau) - total
    return gamma * share.exp() - gamma


# ----------------------------------------------------------------------------------------- beta-DPO


def _noise(index: Tensor, step: Tensor, run_seed: int) -> Tensor:
    """Standard Gumbel noise of pairs at a step, [B] float64: a function of the three alone."""
    uniform = counter_rng.uniform((run_seed, 0), index, step)
    return -torch.log(-torch.log(uniform))


def _keys(state: PartState, gaps: Tensor, index: Tensor, run_seed: int) -> Tensor:
    """Sampling keys, [n]: the largest log w + Gumbel noise are a sample without replacement with weights w."""
    z = (gaps.double() - state["gap_mean"].to(gaps.device)) / state["gap_spread"].to(gaps.device)
    return -0.5 * z**2 + _noise(index, state["step"].to(gaps.device), run_seed)


def _index(c: ObjectiveInputs) -> Tensor:
    index = c.log_probs.index
    return torch.arange(c.scores.shape[1], device=c.scores.device) if index is None else index


def _gaps(c: ObjectiveInputs) -> Tensor:
    return (c.unscaled[0] - c.unscaled[1]).detach()


def _batch_initial(*, mean: float, spread: float, **_: Any) -> dict[str, float | Tensor]:
    return {"gap_mean": mean, "gap_spread": spread, "factor": 1.0, "threshold": -1e30, "kept": 1.0, "step": 0.0}


def _batch_observe(c: ObjectiveInputs, **_: Any) -> Tensor:
    gaps = _gaps(c).double()
    return torch.stack([gaps, _index(c).double(), torch.full_like(gaps, c.beta)], dim=1)


def _batch_update(
    state: PartState, values: Tensor, *, drop: float, momentum: float, run_seed: int, scale: float = 0.0, **_: Any
) -> PartState:
    gaps, index, beta = values[:, 0], values[:, 1], values[0, 2]
    updated = {**state, **_moments(state, gaps, momentum), "step": state["step"] + 1}
    keys = _keys(updated, gaps, index, run_seed)
    count = max(1, int(len(keys) * (1 - drop)))
    order = keys.sort(descending=True).values
    # Halfway to the next key, so that round-off never decides.
    below = order[count] if count < len(order) else order[-1] - 2
    threshold = (order[count - 1] + below) / 2
    used = gaps[keys > threshold].mean()
    factor = (1 + scale * (used - updated["gap_mean"])).clamp(min=float(1e-3 / beta))
    return {
        **updated,
        "threshold": threshold,
        "factor": factor,
        "kept": torch.tensor(count / len(keys), dtype=torch.float64),
    }


_BATCH = StatefulPart(_batch_initial, _batch_observe, _batch_update)
_BATCH_LIMITS = {**MOMENTS, "drop": {"ge": 0, "lt": 1}}


@register("margin", stateful=_BATCH, limits=_BATCH_LIMITS, seeded=True)
def batch_beta(
    c: ObjectiveInputs, *, run_seed: int, scale: float = 0.6, drop: float = 0.2, momentum: float = 0.9,
    mean: float = 0.0, spread: float = 1.0,
) -> Tensor:  # fmt: skip
    """Beta-DPO (2407.08639): m = (beta_b/beta)(r_w - r_l), with a beta_b of the step's kept pairs.

    beta_b = max(1e-3, beta (1 + scale (mean kept gap - M))). M and S as in `instance`, of the log-ratios' gap; which
    pairs are kept, see the weight `kept`.

    Returns:
        (r_w - r_l) - m, [B].
    """
    return (1 - c.state["factor"].to(c.rewards)) * (c.rewards[0] - c.rewards[1])


@register("weight", stateful=_BATCH, limits=_BATCH_LIMITS, seeded=True)
def kept(
    c: ObjectiveInputs, *, run_seed: int, drop: float = 0.2, momentum: float = 0.9, mean: float = 0.0,
    spread: float = 1.0,
) -> Tensor:  # fmt: skip
    """Beta-DPO (2407.08639): the weight that keeps the share 1 - drop of a step's pairs.

    Sampled without replacement with weights exp(-((gap - M)/S)^2/2); the draw depends on the run's seed, the pair and
    the step alone.

    Returns:
        1/share for kept pairs and 0 for the others, [B].
    """
    chosen = _keys(c.state, _gaps(c), _index(c), run_seed) > c.state["threshold"].to(c.scores.device)
    return chosen.to(c.scores) / c.state["kept"].to(c.scores)

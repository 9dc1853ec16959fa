"""L1-penalised logistic regression with three coefficients, solved to round-off for a batch of problems.

    minimise over theta   |theta|_1 + C sum_i w_i [ log(1 + e^{z_i}) - p_i z_i ],   z = X theta, p in [0, 1]

In liblinear a fractional target p is two rows (y = 1 with weight w p, y = 0 with weight w (1 - p)). The method is
proximal Newton (Lee, Sun and Saunders 2014): each step minimises the quadratic model plus |.|_1 exactly, by trying all
27 sign patterns of three coefficients. liblinear stops at a gradient tolerance, and its solution differs from this one
accordingly.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SIGNS = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))  # [27, 3]
_STEPS = 100
_HALVINGS = 40


def log_loss(z: Array, p: Array) -> Array:
    """Cross-entropy of logits z against fractional targets p in [0, 1], elementwise, in nats."""
    loss: Array = np.logaddexp(0.0, z) - p * z
    return loss


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z), elementwise, without overflow."""
    half: Array = 0.5 * (1.0 + np.tanh(0.5 * z))
    return half


def solve(x: Array, weight: Array, p: Array, c: float, start: Array | None = None) -> Array:
    """Minimise the objective above for B problems.

    Args:
        x: [B, N, 3] design matrices X.
        weight: [B, N] row weights w, at least 0.
        p: [B, N] or [N] targets.
        c: inverse penalty strength C.
        start: [B, 3] or [3] initial theta; None: 0.

    Returns:
        [B, 3] minimisers theta.

    Raises:
        ArithmeticError: a problem did not converge, as with data that are not finite.
    """
    batch = len(x)
    theta = np.zeros((batch, 3)) if start is None else np.broadcast_to(start, (batch, 3)).copy()
    targets = np.broadcast_to(p, weight.shape)
    # The round-off of a gradient is bounded by the sum of C w x over all rows.
    tolerance = 1e-11 * (1.0 + c * np.sum(weight, axis=1))
    active = np.arange(batch)
    for _ in range(_STEPS):
        design, w, t = x[active], weight[active], targets[active]
        current = theta[active]
        gradient, hessian = _derivatives(design, w, t, c, current)
        unsolved = _violation(current, gradient) > tolerance[active]
        if not unsolved.any():
            return theta
        active, design, w, t, current = active[unsolved], design[unsolved], w[unsolved], t[unsolved], current[unsolved]
        direction = _quadratic(hessian[unsolved], gradient[unsolved], current) - current
        theta[active], stuck = _search(design, w, t, c, current, direction, gradient[unsolved])
        active = active[~stuck]  # no step lowers the objective: converged up to round-off
        if not len(active):
            return theta
    raise ArithmeticError(f"the length-controlled fit did not converge in {_STEPS} steps at C={c:g}")


def violation(x: Array, weight: Array, p: Array, c: float, theta: Array) -> Array:
    """[B] violation of the optimality condition by theta [B, 3]: the largest distance of 0 from the subdifferential."""
    gradient, _ = _derivatives(x, weight, np.broadcast_to(p, weight.shape), c, theta)
    return _violation(theta, gradient)


def _logits(x: Array, theta: Array) -> Array:
    z: Array = np.matmul(x, theta[:, :, None])[:, :, 0]
    return z


def _objective(x: Array, w: Array, p: Array, c: float, theta: Array) -> Array:
    value: Array = np.abs(theta).sum(axis=1) + c * np.sum(w * log_loss(_logits(x, theta), p), axis=1)
    return value


def _derivatives(x: Array, w: Array, p: Array, c: float, theta: Array) -> tuple[Array, Array]:
    """Gradient [B, 3] and Hessian [B, 3, 3] of the smooth part."""
    s = sigmoid(_logits(x, theta))
    gradient = c * np.matmul((w * (s - p))[:, None, :], x)[:, 0]
    hessian = c * np.matmul((x * (w * s * (1.0 - s))[:, :, None]).transpose(0, 2, 1), x)
    return gradient, hessian


def _violation(theta: Array, gradient: Array) -> Array:
    at_zero = np.maximum(np.abs(gradient) - 1.0, 0.0)
    away = np.abs(gradient + np.sign(theta))
    worst: Array = np.where(theta == 0.0, at_zero, away).max(axis=1)
    return worst


def _quadratic(hessian: Array, gradient: Array, theta: Array) -> Array:
    """[B, 3] exact argmin over u of g.(u - theta) + (u - theta).H.(u - theta)/2 + |u|_1."""
    # A column of zeros (difficulty of one value) makes H singular; the ridge changes the path, not the optimum.
    scale = np.trace(hessian, axis1=1, axis2=2) + np.finfo(float).tiny
    h = hessian + (1e-12 * scale)[:, None, None] * np.eye(3)
    r = np.matmul(h, theta[:, :, None])[:, :, 0] - gradient
    best, best_value = np.zeros_like(theta), np.zeros(len(theta))  # u = 0 has value 0
    for sign in _SIGNS:
        support = sign != 0.0
        if not support.any():
            continue
        u = np.zeros_like(theta)
        block = h[:, support][:, :, support]
        u[:, support] = np.linalg.solve(block, (r[:, support] - sign[support])[:, :, None])[:, :, 0]
        # Each u is compared by its true value, so a sign pattern that does not fit cannot win wrongly.
        value = 0.5 * np.einsum("bi,bij,bj->b", u, h, u) - (r * u).sum(axis=1) + np.abs(u).sum(axis=1)
        better = value < best_value
        best[better], best_value[better] = u[better], value[better]
    return best


def _search(
    x: Array, w: Array, p: Array, c: float, theta: Array, direction: Array, gradient: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Halve the step until the objective falls enough (Armijo); new theta [B, 3] and mask [B] of stuck problems."""
    value = _objective(x, w, p, c, theta)
    predicted = (gradient * direction).sum(axis=1) + np.abs(theta + direction).sum(axis=1) - np.abs(theta).sum(axis=1)
    new, step = theta.copy(), np.ones(len(theta))
    pending = np.ones(len(theta), dtype=bool)
    noise = 4e-16 * np.abs(value)
    for _ in range(_HALVINGS):
        at = np.flatnonzero(pending)
        trial = theta[at] + step[at, None] * direction[at]
        trial_value = _objective(x[at], w[at], p[at], c, trial)
        good = trial_value <= value[at] + 1e-4 * step[at] * predicted[at] + noise[at]
        new[at[good]] = trial[good]
        pending[at[good]] = False
        if not pending.any():
            break
        step[at[~good]] *= 0.5
    # A full step below the round-off of theta changes nothing.
    tiny = np.abs(direction).max(axis=1) <= 1e-15 * (1.0 + np.abs(theta).max(axis=1))
    return new, pending | tiny

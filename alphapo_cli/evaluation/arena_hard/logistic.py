"""Weighted logistic regression with an optional quadratic penalty, for many weightings of the same rows at once.

    minimise over theta   sum_k ridge_k theta_k^2 / 2 + sum_i w_i [ log(1 + e^{z_i}) - y_i z_i ],   z = X theta

with targets y in [0, 1]. A Bradley-Terry model against one opponent is this with X = 1: the maximum-likelihood strength
is logit(sum w y / sum w) (Bradley and Terry 1952; a tie is y = 1/2). The method is Newton's with step halving; the
objective is convex, so a stationary point is the minimum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alphapo_cli.evaluation.l1_logistic import Array, log_loss, sigmoid

_STEPS = 60
_HALVINGS = 30
_TOLERANCE = 1e-9  # of the gradient, relative to the sum of the weights
# Below this curvature, relative to the sum of the weights, the likelihood rises without end along some direction.
_FLAT = 1e-7
_AT_ONCE = 256  # weightings solved together, which bounds the memory


def solve(x: Array, weight: Array, y: Array, ridge: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Minimise the objective above for R weightings.

    Args:
        x: [N, K] design matrix X, columns of order 1.
        weight: [R, N] row weights w, at least 0.
        y: [N] targets.
        ridge: [K] penalties, at least 0.

    Returns:
        [R, K] minimisers, and [R] whether each exists: without a penalty there is none where X separates the targets.
    """
    theta, finite = np.zeros((len(weight), x.shape[1])), np.zeros(len(weight), dtype=bool)
    for start in range(0, len(weight), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        theta[part], finite[part] = _newton(x, weight[part], y, ridge)
    return theta, finite


def objective(x: Array, weight: Array, y: Array, ridge: Array, theta: Array) -> Array:
    """[R] values of the objective at theta [R, K]."""
    value: Array = (weight * log_loss(theta @ x.T, y)).sum(axis=1) + 0.5 * (theta**2) @ ridge
    return value


def _newton(x: Array, weight: Array, y: Array, ridge: Array) -> tuple[Array, NDArray[np.bool_]]:
    rows, columns = len(weight), x.shape[1]
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), columns * columns)
    theta, finite, total = np.zeros((rows, columns)), np.zeros(rows, dtype=bool), weight.sum(axis=1)
    active = np.flatnonzero(total > 0)
    for _ in range(_STEPS):
        w = weight[active]
        s = sigmoid(theta[active] @ x.T)
        gradient = (w * (s - y)) @ x + ridge * theta[active]
        hessian = ((w * s * (1.0 - s)) @ products).reshape(-1, columns, columns) + np.diag(ridge)
        curvature = np.linalg.eigvalsh(hessian)[:, 0] / total[active]
        settled = np.abs(gradient).max(axis=1) <= _TOLERANCE * total[active]
        flat = curvature <= _FLAT
        active, gradient, hessian, settled = active[~flat], gradient[~flat], hessian[~flat], settled[~flat]
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        finite[active[settled]] = True
        theta[active[settled]] -= step[settled]  # Newton's last step squares what error is left
        active, gradient, step = active[~settled], gradient[~settled], step[~settled]
        if not len(active):
            break
        theta[active] = _search(x, weight[active], y, ridge, theta[active], step, gradient)
    return theta, finite


def _search(x: Array, w: Array, y: Array, ridge: Array, theta: Array, step: Array, gradient: Array) -> Array:
    """Halve the step of every weighting until its objective falls enough (Armijo)."""
    value = objective(x, w, y, ridge, theta)
    slope, noise = (gradient * step).sum(axis=1), 4e-16 * np.abs(value)
    new, length, pending = theta.copy(), np.ones(len(theta)), np.arange(len(theta))
    for _ in range(_HALVINGS):
        trial = theta[pending] - length[pending, None] * step[pending]
        good = objective(x, w[pending], y, ridge, trial) <= (
            value[pending] - 1e-4 * length[pending] * slope[pending] + noise[pending]
        )
        new[pending[good]] = trial[good]
        pending = pending[~good]
        if not len(pending):
            break
        length[pending] *= 0.5
    return new

"""Arena-Hard's score, with and without control for style, and their bootstrap intervals.

A pair of answers gives two verdicts on the model, y = 1, 1/2 or 0, of weight w (3 for >> and <<). Both belong to one
prompt and so to the same style differences; the pair counts as one row with weight W = w_1 + w_2 and target
Y = (w_1 y_1 + w_2 y_2) / W, which leaves every likelihood below unchanged up to a constant.

score             100 sigmoid(theta), theta = argmax sum W [Y log sigmoid(theta) + (1 - Y) log sigmoid(-theta)]
                  = 100 sum W Y / sum W: the Bradley-Terry strength against one opponent, as a win rate
style-controlled  the same with logits theta + beta . d, d the standardised style differences of the prompt

The public tool centres d at its mean over all battles. sigmoid(theta) is then the win rate at that mean, which for one
model alone is its own style, so that little is controlled. The win rate at equal style is at d of a difference of 0:
sigmoid(theta - beta . mean / sd), from the same fit. Both are computed.

Source: lmarena/arena-hard-auto, show_result.py and utils_math.py at bc367c0 (v0.1: maximum likelihood by
LogisticRegression; the style fit has sklearn's default penalty), show_result.py and utils/math_utils.py at 196f6b8 (v2.0:
weighted mean; the style fit has no penalty).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphapo_cli.evaluation.arena_hard.logistic import objective, solve
from alphapo_cli.evaluation.arena_hard.verdicts import PairGrades
from alphapo_cli.evaluation.l1_logistic import Array, sigmoid

_HOLD = 1e-6  # ridge on style coefficients where the likelihood has no maximum, relative to the sum of the weights
_PERFECT = 1e-3  # nats a verdict above the least loss there is, below which a fit explains everything


class UnavailableError(ValueError):
    """The style-controlled score does not exist for these verdicts; the message says why."""


@dataclass(frozen=True)
class Battles:
    """Verdicts by pair. `weight`: [n] W, 0 for a pair that does not count; `target`: [n] Y; `share`: [n] Y without weights.

    Targets and shares of pairs that do not count are NaN.
    """

    weight: Array
    target: Array
    share: Array


@dataclass(frozen=True)
class StyleFit:
    """A fit with style; scores in percent, replicates [R] in percent with NaN where a resample has no finite fit.

    `held` and `held_replicates`: whether the likelihood of the whole, and of how many resamples, has no maximum, so that
    a small ridge on the style coefficients holds the fit.
    """

    at_equal: float
    at_mean: float
    coefficients: tuple[float, ...]
    equal_replicates: Array
    mean_replicates: Array
    held: bool
    held_replicates: int


def battles(pairs: Sequence[PairGrades], version: str, weight: float) -> Battles:
    """Weights and targets of all pairs.

    Args:
        pairs: [n] grades.
        version: "v2.0": a pair without one of its verdicts does not count; "v0.1": each verdict counts by itself.
        weight: of a verdict >> or <<.

    Returns:
        The pairs as rows of a weighted regression.
    """
    y = np.array([(pair.first, pair.second) for pair in pairs], dtype=np.float64).reshape(-1, 2)
    strong = np.array([(pair.first_strong, pair.second_strong) for pair in pairs], dtype=bool).reshape(-1, 2)
    counts = ~np.isnan(y)
    if version == "v2.0":
        counts &= counts.all(axis=1, keepdims=True)
    w = np.where(counts, np.where(strong, weight, 1.0), 0.0)
    total, n = w.sum(axis=1), counts.sum(axis=1)
    known = np.where(counts, y, 0.0)
    with np.errstate(invalid="ignore"):
        target = (w * known).sum(axis=1) / np.where(total > 0, total, np.nan)
        share = known.sum(axis=1) / np.where(n > 0, n, np.nan)
    return Battles(total, target, share)


def score(found: Battles) -> float:
    """100 sum W Y / sum W: the Bradley-Terry win rate against the baseline, in percent; NaN without a verdict."""
    counts = found.weight > 0
    total = float(found.weight.sum())
    return 100.0 * float(found.weight[counts] @ found.target[counts]) / total if total else math.nan


def score_replicates(found: Battles, counts: Array) -> Array:
    """[R] scores in percent of the resamples `counts` [R, n]; NaN where one has no verdict."""
    known = found.weight > 0
    weight = counts[:, known] * found.weight[known]
    total = weight.sum(axis=1)
    replicates: Array = 100.0 * (weight @ found.target[known]) / np.where(total > 0, total, np.nan)
    return replicates


def standardise(differences: Array, weight: Array, version: str) -> tuple[Array, Array]:
    """Mean and standard deviation of style differences over the battles, by which they are standardised.

    Every verdict is W battles, as in the public tool, which repeats a row `weight` times. The standard deviation divides by
    the number of battles in v0.1 and by one less in v2.0.

    Args:
        differences: [n, K].
        weight: [n] W.
        version: "v0.1" or "v2.0".

    Returns:
        [K] means, [K] standard deviations.
    """
    total = float(weight.sum())
    mean = weight @ differences / total
    spread = weight @ (differences - mean) ** 2
    deviation: Array = np.sqrt(spread / (total if version == "v0.1" else max(total - 1.0, 1.0)))
    return mean, deviation


def penalties(features: int, version: str) -> Array:
    """Ridge penalties of theta and beta in the style fit.

    v2.0 has none. In v0.1 sklearn minimises |c|^2 / 2 plus the losses of every battle twice, where theta = ln(10) (c_m -
    c_b) and, by symmetry, c_m = -c_b. Divided by two, theta^2 / (8 ln(10)^2) + |beta|^2 / 4 is added to the losses of
    every battle once.

    Args:
        features: K, the number of style differences.
        version: "v0.1" or "v2.0".

    Returns:
        [1 + K] penalties.
    """
    if version == "v2.0":
        return np.zeros(1 + features)
    return np.array([0.25 / math.log(10.0) ** 2] + [0.5] * features)


def fit_style(found: Battles, differences: Array, version: str, counts: Array | None) -> StyleFit:
    """Fit strength and style together.

    Args:
        found: the battles.
        differences: [n, K] style differences, none of which is constant over the pairs that count.
        version: decides penalty and standard deviation.
        counts: [R, n] resamples of the pairs; None: no replicates. All use the standardisation of the whole.

    Returns:
        Scores at equal and at mean style, coefficients by standard deviation, and replicates.

    Raises:
        UnavailableError: the differences depend on one another, or separate wins from losses, so that nothing is estimated.
    """
    known = found.weight > 0
    d, weight, target = differences[known], found.weight[known], found.target[known]
    mean, deviation = standardise(d, weight, version)
    x = np.column_stack([np.ones(len(d)), (d - mean) / deviation])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise UnavailableError(f"{len(d)} pairs do not tell {d.shape[1]} style differences apart")
    ridge = penalties(d.shape[1], version)
    theta, finite, ridged = _solved(x, weight[None, :], target, ridge)
    if not finite[0] or (ridged[0] and _explains_all(x, weight, target, theta[0])):
        raise UnavailableError("style and strength separate wins from losses, so that no finite fit exists")
    at_zero = np.concatenate([[1.0], -mean / deviation])
    at_equal, at_mean, held = np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool)
    if counts is not None:
        every, settled, held = _solved(x, counts[:, known] * weight, target, ridge)
        at_equal = np.where(settled, 100.0 * sigmoid(every @ at_zero), np.nan)
        at_mean = np.where(settled, 100.0 * sigmoid(every[:, 0]), np.nan)
    return StyleFit(
        at_equal=100.0 * float(sigmoid(theta[0] @ at_zero)),
        at_mean=100.0 * float(sigmoid(theta[0, 0])),
        coefficients=tuple(float(value) for value in theta[0, 1:]),
        equal_replicates=at_equal,
        mean_replicates=at_mean,
        held=bool(ridged[0]),
        held_replicates=int(held.sum()),
    )


def _solved(x: Array, weight: Array, target: Array, ridge: Array) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Fit every weighting, with a small ridge on the style coefficients where the likelihood has no maximum.

    Rare markdown is the usual reason: a resample without the one answer that has a header, or a header only where the
    model won. Leaving such resamples out would keep those in which it is common. The ridge is so small that it changes
    nothing else: it gives 0 to what does not occur, and a large coefficient to what separates, whose rows then count for
    nothing else.

    Args:
        x: [n, 1 + K] strength and style.
        weight: [R, n] weights.
        target: [n] targets.
        ridge: [1 + K] penalties of the fit.

    Returns:
        [R, 1 + K] coefficients, [R] whether they are finite, and [R] whether the ridge was needed.
    """
    theta, finite = solve(x, weight, target, ridge)
    held = ~finite
    if held.any():
        small = ridge + _HOLD * float(weight.sum(axis=1).mean()) * np.array([0.0] + [1.0] * (len(ridge) - 1))
        theta[held], finite[held] = solve(x, weight[held], target, small)
    return theta, finite, held & finite


def _explains_all(x: Array, weight: Array, target: Array, theta: Array) -> bool:
    """Whether a fit reaches the likelihood that no model exceeds, so that its coefficients mean nothing."""
    inside = np.clip(target, 1e-300, 1.0)
    outside = np.clip(1.0 - target, 1e-300, 1.0)
    entropy = -(weight * (target * np.log(inside) + (1.0 - target) * np.log(outside))).sum()
    reached = objective(x, weight[None, :], target, np.zeros(x.shape[1]), theta[None, :])[0]
    return bool(reached - entropy < _PERFECT * weight.sum())

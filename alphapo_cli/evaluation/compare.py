"""Paired comparison of two evaluations against the same reference.

On each instruction judged for both models, the difference of their shares of the win; the bootstrap interval of its
mean; and a paired permutation test (Fisher's sign-flip test), whose null hypothesis is that swapping the two models'
answers on any instruction leaves the distribution unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.bootstrap import interval, mean_replicates, resample_counts
from alphapo_cli.evaluation.formats import Annotations, short
from alphapo_cli.evaluation.l1_logistic import Array
from alphapo_cli.evaluation.naming import told_apart

EXACT = 14  # with at most so many non-zero differences, all 2^n sign patterns are enumerated


@dataclass(frozen=True)
class ModelComparison:
    """Win rate of A minus that of B, in percentage points, on the instructions judged for both.

    `a` and `b` name the models; where both have one name, they are the ends of their files' paths.
    """

    a: str
    b: str
    n: int
    left_out: int  # instructions judged for one of the two only
    win_rate_a: float
    win_rate_b: float
    difference: float
    interval: tuple[float, float] | None
    confidence: float
    p_value: float
    better: int  # instructions on which A's share of the win is larger
    worse: int
    distinguishable: bool
    sentence: str


def compare(
    a: Annotations, b: Annotations, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> ModelComparison:
    """Compare two annotated outputs on their common instructions.

    Args:
        a: annotations of model A.
        b: annotations of model B.
        resamples: of the bootstrap and of the permutation test.
        confidence: of the interval; 1 - confidence is the level of the test.
        seed: of the resampling.

    Returns:
        Rates, difference, interval and test.

    Raises:
        UsageError: the two differ in reference or judge, or no instruction is judged in both.
    """
    first, second = a.by_instruction(), b.by_instruction()
    shared = [text for text in first if text in second]
    if not shared:
        raise UsageError(f"{a.path} and {b.path} have no instruction in common")
    other = [text for text in shared if first[text].output_1 != second[text].output_1]
    if other:
        raise UsageError(
            f"{a.path} and {b.path} are against different references: output_1 differs on {len(other)} of "
            f"{len(shared)} instructions, first {short(other[0])}"
        )
    judges = [{row.annotator for row in side.rows if row.annotator is not None} for side in (a, b)]
    if judges[0] and judges[1] and judges[0] != judges[1]:
        named = [" and ".join(sorted(side)) for side in judges]
        raise UsageError(f"{a.path} was judged by {named[0]}, {b.path} by {named[1]}: one judge must have judged both")
    pairs = [(first[text].preference, second[text].preference) for text in shared]
    known = np.array([(x, y) for x, y in pairs if x is not None and y is not None], dtype=np.float64)
    if not len(known):
        raise UsageError(f"{a.path} and {b.path}: no instruction has a judgement in both")
    d = known[:, 0] - known[:, 1]
    rates = 100.0 * (known.mean(axis=0) - 1.0)
    bounds = None
    if len(d) > 1 and resamples:
        replicates = mean_replicates(d, resample_counts(len(d), resamples, seed))
        bounds = interval(100.0 * replicates, confidence)
    p = permutation_p_value(d, resamples, seed)
    names = told_apart((a.generator or a.path, b.generator or b.path), (a.path, b.path))
    difference = 100.0 * float(np.mean(d))
    distinguishable = p < 1.0 - confidence
    total = len(first.keys() | second.keys())
    return ModelComparison(
        a=names[0],
        b=names[1],
        n=len(d),
        left_out=total - len(d),
        win_rate_a=float(rates[0]),
        win_rate_b=float(rates[1]),
        difference=difference,
        interval=bounds,
        confidence=confidence,
        p_value=p,
        better=int(np.sum(d > 0)),
        worse=int(np.sum(d < 0)),
        distinguishable=distinguishable,
        sentence=_sentence(names, difference, bounds, confidence, p, len(d), distinguishable),
    )


def permutation_p_value(d: Array, resamples: int, seed: int) -> float:
    """Two-sided p-value of the mean paired difference under random signs.

    Args:
        d: [n] paired differences.
        resamples: random sign patterns, used with more than `EXACT` non-zero differences.
        seed: of the signs.

    Returns:
        The exact p-value, or (1 + hits) / (1 + resamples), which is never zero.
    """
    nonzero = d[d != 0.0]
    if not len(nonzero):
        return 1.0
    observed = abs(float(np.sum(nonzero))) * (1.0 - 1e-12)  # sums in another order must still count as equal
    if len(nonzero) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(nonzero))))
        return float(np.mean(np.abs(signs @ nonzero) >= observed))
    rng, hits, left = np.random.default_rng(seed), 0, max(resamples, 1)
    while left:
        rows = min(left, 2048)
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(nonzero)), dtype=np.int8) - 1.0
        hits += int(np.sum(np.abs(signs @ nonzero) >= observed))
        left -= rows
    return (1 + hits) / (1 + max(resamples, 1))


def _sentence(
    names: tuple[str, str],
    difference: float,
    bounds: tuple[float, float] | None,
    confidence: float,
    p: float,
    n: int,
    distinguishable: bool,
) -> str:
    side = "below" if difference < 0 else "above"
    range_ = f"{confidence:.0%} interval {bounds[0]:+.2f} to {bounds[1]:+.2f}, " if bounds else ""
    verdict = "distinguishable" if distinguishable else "not distinguishable"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return (
        f"the win rate of {names[0]} is {abs(difference):.2f} points {side} that of {names[1]} on {n} instructions "
        f"({range_}{shown}): the two are {verdict} at the {1.0 - confidence:.2g} level"
    )

"""Paired comparison of two evaluations against the same reference.

On each instruction judged for both models, the difference of their shares of the win; the interval of its mean over
instructions, and a test whose p-value agrees with it (runtime/statistics/paired.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.formats import Annotations, short
from alphapo_cli.evaluation.naming import told_apart
from alphapo_cli.evaluation.verdict import FEW, FEW_PAIRS, UNCLEAR
from alphapo_cli.runtime.statistics.bounded_mean import mean_interval
from alphapo_cli.runtime.statistics.paired import fewest, least_p_value, paired_test
from alphapo_cli.runtime.wording import counted, per_cent, rate

Array = npt.NDArray[np.float64]
SAME = "the same answers"  # the verdict on one set of answers


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
    interval: tuple[float, float]  # over instructions
    confidence: float
    p_value: float
    better: int  # instructions on which A's share of the win is larger
    worse: int
    identical: int  # instructions on which both models gave the same answer
    distinguishable: (
        bool  # whether the models are: one set of answers, judged twice, is one model whatever the judge said
    )
    sentence: str
    verdict: dict[str, Any]

    @property
    def same_answers(self) -> bool:
        """Whether both models gave the same answer to every instruction."""
        return self.identical == self.n


def compare(
    a: Annotations, b: Annotations, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> ModelComparison:
    """Compare two annotated outputs on their common instructions.

    Args:
        a: annotations of model A.
        b: annotations of model B.
        resamples: of the random signs, where there are too many to try all.
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
            f"{counted(len(shared), 'instruction')}, first {short(other[0])}"
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
    tested = paired_test(d, confidence, resamples, seed)
    judged = [text for text in shared if None not in (first[text].preference, second[text].preference)]
    identical = sum(first[text].output_2 == second[text].output_2 for text in judged)
    bounds = (100.0 * tested.interval[0], 100.0 * tested.interval[1])
    if identical == len(d) and not d.any():
        bounds = (0.0, 0.0)  # by definition: one set of answers, judged alike
    names = told_apart((a.generator or a.path, b.generator or b.path), (a.path, b.path))
    difference = 100.0 * float(np.mean(d))
    total = len(first.keys() | second.keys())
    found = ModelComparison(
        a=names[0],
        b=names[1],
        n=len(d),
        left_out=total - len(d),
        win_rate_a=float(rates[0]),
        win_rate_b=float(rates[1]),
        difference=difference,
        interval=bounds,
        confidence=confidence,
        p_value=tested.p_value,
        better=int(np.sum(d > 0)),
        worse=int(np.sum(d < 0)),
        identical=identical,
        distinguishable=tested.p_value < 1.0 - confidence and identical < len(d),
        sentence="",
        verdict={},
    )
    return replace(found, sentence=_sentence(found), verdict=_verdict(found, known[:, :2] - 1.0))


def _verdict(found: ModelComparison, shares: Array) -> dict[str, Any]:
    """Which of the two is better, with both rates; `shares`: of the win, [n, 2]."""
    rates = []
    for column, name in enumerate((found.a, found.b)):
        ends = mean_interval(shares[:, column], found.confidence)
        rates.append(f"{name} {rate(float(shares[:, column].mean()), found.n, ends)}")
    if found.same_answers:
        outcome, said = SAME, f"{SAME}: the two are one model"
        if found.better + found.worse:
            said += ", judged twice, and the win rates differ by the judge's own noise"
    elif found.distinguishable:
        better, worse = (found.b, found.a) if found.difference < 0 else (found.a, found.b)
        outcome, said = "distinguishable", f"{better} is better than {worse}"
    elif found.n < FEW:
        outcome, said = FEW_PAIRS, f"{FEW_PAIRS} to tell (n = {found.n})"
    else:
        outcome, said = UNCLEAR, UNCLEAR
    level = "" if found.confidence == 0.95 else f" ({per_cent(found.confidence)} intervals)"
    sentence = f"{said}: win rates against the same reference, {rates[0]}; {rates[1]}{level}"
    return {"outcome": outcome, "sentence": sentence}


def _sentence(found: ModelComparison) -> str:
    """What was found, and what the rows cannot show."""
    confidence, p, low, high = found.confidence, found.p_value, *found.interval
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    range_ = f"{per_cent(confidence)} interval over instructions {low:+.2f} to {high:+.2f}, {shown}"
    side = f"{abs(found.difference):.2f} points {'below' if found.difference < 0 else 'above'}"
    size = "equal to" if round(found.difference, 2) == 0.0 else side
    on = counted(found.n, "instruction")
    text = f"the win rate of {found.a} is {size} that of {found.b} on {on} ({range_})"
    if not found.same_answers:
        verdict = "distinguishable" if found.distinguishable else "not distinguishable"
        text += f": the two are {verdict} at the {1.0 - confidence:.2g} level"
    return f"{text}{_limits(found)}"


def _limits(found: ModelComparison) -> str:
    """What has to be known of the rows: the same answers, no difference, or too few."""
    differing = found.better + found.worse
    if found.same_answers:
        noise = "" if not differing else ", so that only the judge's own noise is compared"
        return f"; both gave the same answer to every instruction{noise}"
    if not differing:
        return "; no instruction was judged differently"
    least = least_p_value(differing)
    if least >= 1.0 - found.confidence:
        return (
            f"; only {differing} differ, and fewer than {fewest(found.confidence)} cannot be told apart at this level"
        )
    return ""

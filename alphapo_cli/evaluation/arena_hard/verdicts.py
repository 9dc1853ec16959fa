"""Arena-Hard's five grades: how a judge's text is read, and what a verdict counts.

A judge compares answers A and B and ends with a label: [[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]. Every pair is
judged twice: in the first game A is the baseline, in the second A is the model. Source: lmarena/arena-hard-auto,
gen_judgment.py and show_result.py, at 196f6b8 (v2.0) and bc367c0 (v0.1).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Label -> (A's share of the win, whether the difference is large); a label may be written from either side.
LABELS: dict[str, tuple[float, bool]] = {
    "A>>B": (1.0, True),
    "A>B": (1.0, False),
    "A=B": (0.5, False),
    "B>A": (0.0, False),
    "B>>A": (0.0, True),
    "B<<A": (1.0, True),
    "B<A": (1.0, False),
    "B=A": (0.5, False),
    "A<B": (0.0, False),
    "A<<B": (0.0, True),
}
TIE = "A=B"
_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")


@dataclass(frozen=True)
class PairGrades:
    """The model's share of the win (1, 0.5 or 0; NaN without a verdict) in both games, and whether it was a large one.

    `first`: the baseline was shown as A; `second`: the model was.
    """

    first: float
    second: float
    first_strong: bool = False
    second_strong: bool = False


def read_label(text: str, version: str = "v2.0") -> str | None:
    """Read the verdict in a judge's text.

    Args:
        text: what the judge wrote.
        version: "v2.0": the last label in double brackets, else the last in single ones, in any case; "v0.1": the label
            in double brackets, and none where two different ones occur.

    Returns:
        A key of `LABELS`; None without a verdict.
    """
    if version == "v0.1":
        found = set(_DOUBLE.findall(text))
        return known(found.pop()) if len(found) == 1 else None
    for pattern in (_DOUBLE, _SINGLE):
        labels = pattern.findall(text.upper())
        if labels:
            return known(labels[-1])
    return None


def known(label: object) -> str | None:
    """`label` if it is one of `LABELS`, else None."""
    return label if isinstance(label, str) and label in LABELS else None


def grades(first: str | None, second: str | None) -> PairGrades:
    """The model's grades from the labels of both games; in the first the baseline is A, in the second the model."""
    share_1, strong_1 = LABELS[first] if first is not None else (math.nan, False)
    share_2, strong_2 = LABELS[second] if second is not None else (math.nan, False)
    return PairGrades(1.0 - share_1, share_2, strong_1, strong_2)


def without_thoughts(text: str) -> str:
    """Leave out the thought that some servers leave in the answer of a judge that thinks.

    Args:
        text: what the judge wrote.

    Returns:
        What follows the last `</think>`; nothing where a thought begins the text and does not end.
    """
    rest = text.rpartition("</think>")[2]
    return "" if rest.lstrip().startswith("<think>") else rest

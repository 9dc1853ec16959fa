"""What style is made of (length, headers, list items, bold), and how two answers' styles are compared.

Source: lmarena/arena-hard-auto, utils/add_markdown_info.py (counts, the same in both versions); show_result.py at 196f6b8
(differences of v2.0) and utils_math.py at bc367c0 (of v0.1), after lmsys.org/blog/2024-08-28-style-control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alphapo_cli.evaluation.l1_logistic import Array

_CODE = re.compile(r"```([^`]*)```")
_HEADER = re.compile(r"^(#{1,6})\s", re.MULTILINE)
_ORDERED = re.compile(r"^\s*\d+\.\s", re.MULTILINE)
_UNORDERED = re.compile(r"^\s*[-*+]\s", re.MULTILINE)
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


@dataclass(frozen=True)
class Style:
    """Counts of one answer. `length`: in tokens or characters, the same for all answers of a comparison."""

    length: int
    headers: tuple[int, int, int, int, int, int]  # of level 1 to 6
    ordered: int
    unordered: int
    bold: tuple[int, int]  # by asterisks, by underscores

    def totals(self) -> tuple[int, int, int, int]:
        """(length, headers, list items, bold spans)."""
        return self.length, sum(self.headers), self.ordered + self.unordered, sum(self.bold)

    def metadata(self) -> dict[str, object]:
        """The `metadata` of a row of model_answer, without its token_len."""
        return {
            "header_count": {f"h{level}": n for level, n in enumerate(self.headers, start=1)},
            "list_count": {"ordered": self.ordered, "unordered": self.unordered},
            "bold_count": {"**": self.bold[0], "__": self.bold[1]},
        }


def count_style(text: str, length: int) -> Style:
    """Count the markdown of an answer outside its fenced code blocks; `length` is taken as it is."""
    # The content of a block is removed wherever it occurs, as the public tool does; its fences stay and count for nothing.
    for content in _CODE.findall(text):
        text = text.replace(content, "")
    levels = [len(mark) for mark in _HEADER.findall(text)]
    one, two, three, four, five, six = (levels.count(level) for level in range(1, 7))
    asterisks, underscores = (len(pattern.findall(text)) for pattern in _BOLD)
    return Style(
        length,
        (one, two, three, four, five, six),
        len(_ORDERED.findall(text)),
        len(_UNORDERED.findall(text)),
        (asterisks, underscores),
    )


def differences(model: Sequence[Style], baseline: Sequence[Style], version: str) -> Array:
    """Normalised differences of style, model against baseline.

    v0.1: (m - b) / (m + b + 1) of length and of each count. v2.0: (m - b) / (m + b) of the length (0 for two empty
    answers), and (m - b) / (m + b + 1) of each count per unit of length, count / (length + 1).

    Args:
        model: [n] styles of the model's answers.
        baseline: [n] styles of the baseline's.
        version: "v0.1" or "v2.0".

    Returns:
        [n, 4] differences of length, headers, list items and bold spans, each in (-1, 1) or at its ends.
    """
    m = np.array([style.totals() for style in model], dtype=np.float64).reshape(-1, 4)
    b = np.array([style.totals() for style in baseline], dtype=np.float64).reshape(-1, 4)
    if version == "v0.1":
        plain: Array = (m - b) / (m + b + 1.0)
        return plain
    both = m[:, :1] + b[:, :1]
    length = (m[:, :1] - b[:, :1]) / np.where(both > 0, both, 1.0)
    dense_m, dense_b = m[:, 1:] / (m[:, :1] + 1.0), b[:, 1:] / (b[:, :1] + 1.0)
    return np.concatenate([length, (dense_m - dense_b) / (dense_m + dense_b + 1.0)], axis=1)

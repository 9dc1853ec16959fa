"""What answers look like in a few numbers: length, cut answers, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphapo_cli.modeling.sampling import Sample

NGRAM = 4


def repetition(ids: Sequence[int]) -> float | None:
    """Share of an answer's 4-grams that occurred in it before (seq-rep-4 of arXiv:1908.04319); None below 4 tokens."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else None


def describe(answers: Sequence[Sample], texts: Sequence[str]) -> dict[str, Any]:
    """mean_length in tokens without the end token, mean_characters, shares of cut and of empty answers, repetition.

    repetition_rate: the mean over answers of four tokens and more; None where there are none.
    """
    rates = [rate for answer in answers if (rate := repetition(answer.ids)) is not None]
    return {
        "answers": len(answers),
        "mean_length": _mean([len(answer.ids) for answer in answers]),
        "mean_characters": _mean([len(text) for text in texts]),
        "share_cut": _mean([answer.cut for answer in answers]),
        "share_empty": _mean([not text.strip() for text in texts]),
        "repetition_rate": _mean(rates) if rates else None,
    }


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))

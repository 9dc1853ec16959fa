"""Summary statistics of generated answers: length, truncation, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphapo_cli.modeling.sampling import Sample

NGRAM = 4


def repetition(ids: Sequence[int]) -> float | None:
    """Share of repeated 4-grams, 1 - unique / all (seq-rep-4 of arXiv:1908.04319); None below 4 tokens."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else None


def describe(answers: Sequence[Sample], texts: Sequence[str], thinking: Sequence[bool]) -> dict[str, Any]:
    """Summarise answers.

    Args:
        answers: sampled token ids, without the end token.
        texts: the same answers as text.
        thinking: whether each holds a thought.

    Returns:
        answers (count), mean_length (tokens), mean_characters, share_cut (stopped by the length limit), share_empty,
        share_thinking, and repetition_rate, the mean of `repetition` over answers of at least four tokens (None without any).
    """
    rates = [rate for answer in answers if (rate := repetition(answer.ids)) is not None]
    return {
        "answers": len(answers),
        "mean_length": _mean([len(answer.ids) for answer in answers]),
        "mean_characters": _mean([len(text) for text in texts]),
        "share_cut": _mean([answer.cut for answer in answers]),
        "share_empty": _mean([not text.strip() for text in texts]),
        "share_thinking": _mean(thinking),
        "repetition_rate": _mean(rates) if rates else None,
    }


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))

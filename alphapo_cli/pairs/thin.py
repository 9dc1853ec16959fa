"""Thin: which answers to a prompt take part in pairing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.schema import PairConfig, ThinConfig

NGRAM = 4


def thin(
    candidates: Candidates,
    cfg: ThinConfig,
    score: Callable[[Answer], float | None],
    seed: int,
    left_out: Counter[str] | None = None,
) -> tuple[tuple[Answer, ...], str | None]:
    """Leave out answers that take no part.

    Args:
        candidates: a prompt with its answers.
        cfg: the settings.
        score: the score of an answer by which pairs are ranked; None where it has none.
        seed: of rejection sampling.
        left_out: gains the number of answers that are left out, by reason.

    Returns:
        The answers that are left, and the reason why the prompt gives no pair, or None.
    """
    left = list(candidates.answers)
    steps: list[tuple[str, Callable[[Answer], bool]]] = [
        ("not scored", lambda answer: score(answer) is not None),
        ("empty", lambda answer: bool(answer.text.strip())),  # no training takes one
        ("cut by the token limit", lambda answer: cfg.cut == "keep" or not answer.cut),
        ("outside the length bounds", lambda answer: _fits(answer, cfg)),
        ("repetitive", lambda answer: cfg.max_repetition is None or repetition(answer.text) <= cfg.max_repetition),
    ]
    needed = cfg.min_answers
    counts: Counter[str] = Counter() if left_out is None else left_out
    if len(left) < needed:
        return tuple(left), f"fewer than {needed} answers"
    for what, keeps in steps:
        before = len(left)
        left = [answer for answer in left if keeps(answer)]
        counts[what] += before - len(left)
        if len(left) < needed:
            return tuple(left), f"fewer than {needed} answers: {what}"
    if cfg.duplicates == "drop":
        first: dict[str, Answer] = {}
        for answer in left:
            first.setdefault(answer.text, answer)
        counts["equal texts"] += len(left) - len(first)
        left = list(first.values())
        if len(left) < needed:
            return tuple(left), f"fewer than {needed} answers: equal texts"
    if cfg.rejection_beta is not None and cfg.rejection_keep is not None:
        values = [score(answer) or 0.0 for answer in left]
        taken = rejection_sample(values, cfg.rejection_beta, cfg.rejection_keep, candidates.rng(seed, "rejection"))
        counts["rejection sampling"] += len(left) - len(taken)
        left = [left[i] for i in sorted(taken)]
        if len(left) < needed:
            return tuple(left), f"fewer than {needed} answers: rejection sampling"
    return tuple(left), None


def check_lengths(prompts: Sequence[Candidates], cfg: ThinConfig, pair: PairConfig) -> None:
    """Check before anything is scored that lengths in tokens can be had where settings ask for them.

    Args:
        prompts: prompts with those answers that exist already.
        cfg: the settings.
        pair: the rule, which may weigh lengths.

    Raises:
        UsageError: an answer's token ids are not known.
    """
    tied = any(rule in ("longest", "shortest") for rule in (pair.chosen_ties, pair.rejected_ties))
    weighed = pair.length_unit == "tokens" and (pair.length_weight != 0 or tied)
    if weighed or cfg.min_tokens is not None or cfg.max_tokens is not None:
        for prompt in prompts:
            for answer in prompt.answers:
                answer.length("tokens")


def _fits(answer: Answer, cfg: ThinConfig) -> bool:
    for unit, low, high in (("chars", cfg.min_chars, cfg.max_chars), ("tokens", cfg.min_tokens, cfg.max_tokens)):
        if low is None and high is None:
            continue
        length = answer.length(unit)
        if (low is not None and length < low) or (high is not None and length > high):
            return False
    return True


def repetition(text: str) -> float:
    """Share of repeated 4-grams of words, 1 - unique / all (seq-rep-4 of arXiv:1908.04319); 0 below four words."""
    words = text.split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def rejection_sample(scores: Sequence[float], beta: float, keep: int, rng: Random) -> list[int]:
    """Statistical rejection sampling without replacement (RSO, arXiv:2309.06657, algorithm 1).

    A candidate is drawn evenly from those that are left and taken where u < exp((r - r_max) / beta), r_max over those that
    are left, so that the next one taken is a draw from softmax(r / beta) over them. Going through the candidates in a fixed
    order instead would prefer the first ones.

    Args:
        scores: [n] rewards.
        beta: above 0; large: a random choice, small: the best ones.
        keep: answers to take, all where there are fewer.
        rng: source of every draw.

    Returns:
        Their positions, in the order in which they were taken.
    """
    left, taken = list(range(len(scores))), list[int]()
    best = max(scores, default=0.0)
    while left and len(taken) < keep:
        at = left[int(rng.random() * len(left))]
        if rng.random() < math.exp((scores[at] - best) / beta):
            taken.append(at)
            left.remove(at)
            best = max((scores[i] for i in left), default=0.0)
    return taken

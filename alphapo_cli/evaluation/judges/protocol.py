"""AlpacaEval 2's pairwise judging protocol as pure functions, independent of the engine.

The judge sees both outputs in one prompt, the first called "m" and the second "M", and replies with one of the two
names. Its preference is computed from the log-probs of the first token, not from the sampled one: P(m) = e^m / (e^m +
e^M), where a token outside the top log-probs has probability 0. A random draw that depends on the instruction alone
decides which output comes first. Source: alpaca_eval 0.6.6, annotator weighted_alpaca_eval_gpt4_turbo.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from alphapo_cli.evaluation.judges.prompt import Message, Template, fill

Names = tuple[str, str]
NAMES: Names = ("m", "M")  # of the output that is shown first, and of the other
DRAW = 1.5
ROUND_OFF = 1e-6  # of a sum of two probabilities


@dataclass(frozen=True)
class Pair:
    """Two outputs to compare: output_1 is the reference's, output_2 the model's."""

    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Ask:
    """One question to the judge. `row`: index of the pair; `switched`: the model's output comes first; `key`: hash."""

    row: int
    switched: bool
    messages: tuple[Message, ...]
    key: str


TopLogProbs = Sequence[tuple[str, float]]  # (token, natural log-prob) of the first answer token, best first


def is_switched(instruction: str, seed: int = 0) -> bool:
    """Whether the model's output is shown first: AlpacaEval's random draw (there with annotator seed 0)."""
    # A text seed gives the same stream in every Python version; `choices` uses one random().
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def probability_first(top: TopLogProbs, names: Names = NAMES) -> float | None:
    """P(m) among the two `names` from the top log-probs of the first token; None if they contain neither."""
    logprobs = _of_names(top, names)
    if not logprobs:
        return None
    first, second = names
    gap = logprobs.get(second, -math.inf) - logprobs.get(first, -math.inf)
    if math.isnan(gap):  # both minus infinity
        return None
    # sigmoid(-gap), without overflow for any gap.
    return 0.5 * (1.0 - math.tanh(0.5 * gap))


def verdict_mass(top: TopLogProbs, names: Names = NAMES) -> float:
    """Compute the probability that the judge's first token is one of the two `names`.

    AlpacaEval's preference is the share of one name among the two. It says nothing about a judge that is about to write
    something else, whose names are left with crumbs of probability.

    Returns:
        P(m) + P(M), 0 to 1; a token outside the top log-probs has probability 0.
    """
    return min(1.0, math.fsum(map(math.exp, _of_names(top, names).values())))


def is_verdict(mass: float, least: float) -> bool:
    """Tell whether a first token names one of the two answers.

    Log-probs have the accuracy of float32, or seven digits where a server rounds them, so a mass at the limit may come
    out some 1e-7 lower.

    Args:
        mass: see `verdict_mass`.
        least: `judge.min_mass`.

    Returns:
        Whether it is a verdict; a mass of 0 is none at any limit.
    """
    return mass > 0.0 and mass >= least - ROUND_OFF


def _of_names(top: TopLogProbs, names: Names) -> dict[str, float]:
    """Log-probs of those of the two `names` that are among the top ones."""
    logprobs: dict[str, float] = {}
    for token, logprob in top:
        if token in names:
            logprobs.setdefault(token, logprob)
    return logprobs


def preference(top: TopLogProbs, switched: bool, names: Names = NAMES) -> float | None:
    """Preference from 1 (reference better) to 2 (model better); None if the top log-probs contain neither name."""
    p = probability_first(top, names)
    if p is None:
        return None
    shown = 2.0 - p
    return 3.0 - shown if switched else shown


def asks(
    pairs: Sequence[Pair], template: Template, *, seed: int, both_orders: bool, fingerprint: str
) -> dict[int, list[Ask]]:
    """Build the questions to the judge.

    Args:
        pairs: outputs to compare.
        template: the judge prompt.
        seed: of the order of the two outputs.
        both_orders: ask in both orders.
        fingerprint: everything about the judge that its answers depend on; part of each key.

    Returns:
        One question per row, two with `both_orders`; rows with equal outputs (a draw) have none.
    """
    questions: dict[int, list[Ask]] = {}
    for row, pair in enumerate(pairs):
        if pair.output_1 == pair.output_2:
            continue
        drawn = is_switched(pair.instruction, seed)
        for switched in (drawn, not drawn) if both_orders else (drawn,):
            first, second = (pair.output_2, pair.output_1) if switched else (pair.output_1, pair.output_2)
            messages = fill(template, pair.instruction, first, second)
            parts = [fingerprint, pair.instruction, pair.output_1, pair.output_2, switched]
            key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            questions.setdefault(row, []).append(Ask(row, switched, messages, key))
    return questions

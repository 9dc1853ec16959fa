"""Pair: which two answers to a prompt become chosen and rejected.

    side              answer
    best, worst       by score
    rank:K            the K-th best (1 is the best)
    at:X              the one whose score is nearest to the prompt's mean + X standard deviations
    random            any but the chosen one
    source:NAME       the best (as rejected: the worst) of a source; self: the sampled model's own
    each              as rejected: every other answer, one pair each
    all               every answer
    neighbours        both sides: disjoint pairs of a random order, the better one is chosen (RSO's first round)
    given             both sides: the row's own pair

A pair has different texts and a margin above 0. Equal scores are ordered by `chosen_ties` and `rejected_ties`; "first" is
the first answer of the first source, which does not depend on the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.pairs.candidates import SELF, Answer, Candidates, mean_and_sd
from alphapo_cli.pairs.schema import PairConfig

CHOSEN = ("best", "random", "rank", "source", "all", "neighbours", "given")
REJECTED = ("worst", "random", "rank", "at", "source", "each", "all", "neighbours", "given")
TOGETHER = ("neighbours", "given")  # both sides, or neither


@dataclass(frozen=True)
class Rule:
    """A side as parsed: its kind and, of rank, at and source, what follows the colon."""

    kind: str
    value: str = ""


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected answer; the scores are those that it was ranked by, None for a given pair without any."""

    candidates: Candidates
    chosen: Answer
    rejected: Answer
    score_chosen: float | None
    score_rejected: float | None
    stage: int = 1

    @property
    def margin(self) -> float | None:
        """Difference of the scores."""
        if self.score_chosen is None or self.score_rejected is None:
            return None
        return self.score_chosen - self.score_rejected

    @property
    def key(self) -> str:
        """A text of its own."""
        return "\n".join([self.candidates.key, self.chosen.text, self.rejected.text])


def parse(cfg: PairConfig) -> tuple[Rule, Rule]:
    """Parse both sides of a rule.

    Args:
        cfg: the settings.

    Returns:
        (chosen, rejected).

    Raises:
        UsageError: a side is unknown or lacks its value, or the two do not go together.
    """
    chosen = _side("pair.chosen", cfg.chosen, CHOSEN)
    rejected = _side("pair.rejected", cfg.rejected, REJECTED)
    for kind in TOGETHER:
        if (chosen.kind == kind) != (rejected.kind == kind):
            raise UsageError(f"pair.chosen={cfg.chosen} with pair.rejected={cfg.rejected}: {kind} is for both sides")
    return chosen, rejected


def _side(key: str, text: str, known: Sequence[str]) -> Rule:
    kind, colon, value = text.partition(":")
    with_value = {"rank": "rank:2", "at": "at:-2", "source": "source:self"}
    if kind not in known:
        raise UsageError(f"{key}={text}: no such rule{nearest(kind, known)} (rules: {', '.join(known)})")
    if (kind in with_value) != bool(colon and value):
        form = with_value.get(kind, kind)
        raise UsageError(f"{key}={text}: write it as {key}={form}")
    if kind == "rank" and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise UsageError(f"{key}={text}: a rank is a whole number from 1, the best")
    if kind == "at":
        try:
            usable = math.isfinite(float(value))
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{key}={text}: write a number of standard deviations, such as at:-2")
    return Rule(kind, value)


def check_count(rules: tuple[Rule, Rule], cfg: PairConfig, answers: int) -> None:
    """Refuse (UsageError) a rank beyond the number of answers that a prompt has."""
    for key, rule in zip(("pair.chosen", "pair.rejected"), rules, strict=True):
        if rule.kind == "rank" and int(rule.value) > answers:
            raise UsageError(
                f"{key}=rank:{rule.value}: there are only {answers} answers to a prompt; ask for more answers"
            )


def pairs_of(
    candidates: Candidates, answers: Sequence[Answer], scores: Sequence[float], cfg: PairConfig, seed: int
) -> tuple[list[Pair], str | None]:
    """The pairs of one prompt.

    Args:
        candidates: the prompt.
        answers: its answers that take part, at least two.
        scores: [n] what they are ranked by.
        cfg: the rule.
        seed: of what is random.

    Returns:
        The pairs, and where there are none the reason.
    """
    chosen_rule, rejected_rule = parse(cfg)
    rng = candidates.rng(seed, "pair")
    if chosen_rule.kind == "given":
        return _given(candidates, dict(zip(map(id, answers), scores, strict=True)))
    if min(scores) == max(scores):
        return [], "tied: all scores are equal"
    view = _View(answers, scores, cfg, rng)
    if chosen_rule.kind == "neighbours":
        found = view.neighbours()
    else:
        found = [(i, j) for i in view.chosen(chosen_rule) for j in view.rejected(rejected_rule, i)]
    if not found:
        return [], "no answer that the rule asks for"
    reasons: dict[str, None] = {}
    pairs: list[Pair] = []
    for i, j in dict.fromkeys(found):
        reason = _fault(answers[i], answers[j], scores[i], scores[j], cfg)
        if reason is None:
            pairs.append(Pair(candidates, answers[i], answers[j], scores[i], scores[j]))
        else:
            reasons[reason] = None
    return pairs, None if pairs else next(iter(reasons))


def _fault(chosen: Answer, rejected: Answer, high: float, low: float, cfg: PairConfig) -> str | None:
    """Why two answers are no pair."""
    own = cfg.own_margin is not None and chosen.source == SELF
    least = cfg.own_margin if own else cfg.min_margin
    if chosen.text == rejected.text:
        return "equal texts"
    if high == low:
        return "tied: equal scores"
    if high < low:
        return "the rejected answer has the higher score"
    if least is not None and high - low < least:
        return f"a margin below {least:g}"
    if cfg.min_chosen is not None and high < cfg.min_chosen:
        return f"a chosen score below {cfg.min_chosen:g}"
    return None


def _given(candidates: Candidates, scores: dict[int, float]) -> tuple[list[Pair], str | None]:
    """The row's own pair, whatever its scores."""
    if candidates.given is None:
        return [], "no given pair"
    chosen, rejected = (candidates.answers[i] for i in candidates.given)
    if chosen.text == rejected.text:
        return [], "equal texts"
    return [Pair(candidates, chosen, rejected, scores.get(id(chosen)), scores.get(id(rejected)))], None


class _View:
    """The answers to a prompt in the order of their scores."""

    def __init__(self, answers: Sequence[Answer], scores: Sequence[float], cfg: PairConfig, rng: Random) -> None:
        self.answers, self.scores, self.cfg, self.rng = answers, scores, cfg, rng
        self.drawn = [rng.random() for _ in answers]

    def _tie(self, rule: str) -> Callable[[int], float]:
        """What orders answers of equal scores, lowest first."""
        lengths = [answer.length(self.cfg.length_unit) for answer in self.answers] if rule.endswith("est") else []
        return {
            "first": lambda i: float(i),
            "random": lambda i: self.drawn[i],
            "longest": lambda i: -float(lengths[i]),
            "shortest": lambda i: float(lengths[i]),
        }[rule]

    def best_first(self) -> list[int]:
        tie = self._tie(self.cfg.chosen_ties)
        return sorted(range(len(self.answers)), key=lambda i: (-self.scores[i], tie(i), i))

    def worst_first(self) -> list[int]:
        tie = self._tie(self.cfg.rejected_ties)
        return sorted(range(len(self.answers)), key=lambda i: (self.scores[i], tie(i), i))

    def neighbours(self) -> list[tuple[int, int]]:
        order = self.rng.sample(range(len(self.answers)), len(self.answers))
        two = zip(order[::2], order[1::2], strict=False)
        return [(i, j) if self.scores[i] >= self.scores[j] else (j, i) for i, j in two]

    def chosen(self, rule: Rule) -> list[int]:
        order = self.best_first()
        if rule.kind == "random":
            return [order[int(self.rng.random() * len(order))]]
        return self._pick(rule, order)

    def rejected(self, rule: Rule, chosen: int) -> list[int]:
        if rule.kind == "rank":
            return [i for i in self._pick(rule, self.best_first()) if i != chosen]
        order = [i for i in self.worst_first() if i != chosen and self.answers[i].text != self.answers[chosen].text]
        if not order:
            return []
        if rule.kind == "random":
            return [order[int(self.rng.random() * len(order))]]
        if rule.kind == "at":
            mean, sd = mean_and_sd(self.scores)
            target = mean + float(rule.value) * sd
            return [min(order, key=lambda i: abs(self.scores[i] - target))]  # of equally near ones the lower
        if rule.kind == "each":
            return order
        return self._pick(rule, order)

    def _pick(self, rule: Rule, order: list[int]) -> list[int]:
        """What all, rank, source, and best or worst take from an order."""
        if rule.kind == "all":
            return order
        if rule.kind == "rank":
            return order[int(rule.value) - 1 : int(rule.value)]
        if rule.kind == "source":
            return [i for i in order if self.answers[i].source == rule.value][:1]
        return order[:1]

"""Three pairs with all that an objective may read of them, and token weights and scores in plain floats.

An oracle for `test_part_pairs`: formulas are written out from the papers, and nothing here calls our code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

BETA, GAMMA, SEED, STEP = 0.3, 0.2, 11, 5  # of every objective in the table; the run's seed, the optimizer step


@dataclass(frozen=True)
class Answer:
    """What is known of one answer, token by token and as a whole."""

    logps: tuple[float, ...]
    reference: tuple[float, ...]
    differs: tuple[bool, ...]  # whether the other answer lacks the token
    turns: tuple[int, ...]
    guide: tuple[float, ...]  # log-ratio of the guide to the reference
    score: float
    other_reward: float
    second: float  # summed log-prob under a second reference
    kl: float
    log_p2: float


@dataclass(frozen=True)
class Pair:
    w: Answer
    l: Answer  # noqa: E741
    index: int
    offset: float
    weight: float
    distance: float
    wins: float  # win_probability
    sure: float  # the probability that the label is right


IDS = [([5, 6, 7, 8], [5, 9, 8]), ([4, 3], [4, 4, 3, 6, 2]), ([7, 8, 9], [1, 2, 3])]
DIFFERS = [((0, 1, 1, 0), (0, 1, 0)), ((0, 0), (1, 0, 0, 1, 1)), ((1, 1, 1), (1, 1, 1))]


def made() -> list[Pair]:
    rng = Random(3)

    def answer(differs: tuple[int, ...]) -> Answer:
        n = len(differs)
        logps = tuple(rng.uniform(-2.5, -0.2) for _ in range(n))
        reference = tuple(x + rng.gauss(0, 0.6) - 0.3 for x in logps)
        return Answer(
            logps, tuple(min(x, -0.05) for x in reference), tuple(map(bool, differs)), tuple(j // 2 for j in range(n)),
            tuple(rng.gauss(0, 0.5) for _ in range(n)), rng.uniform(0.1, 0.4), rng.gauss(0, 1),
            sum(reference) + rng.gauss(0, 0.3), rng.expovariate(2), -rng.uniform(0.3, 1.5),
        )  # fmt: skip

    pairs = []
    for i, (w, l) in enumerate(DIFFERS):  # noqa: E741
        better = answer(w)
        pairs.append(
            Pair(
                replace(better, score=better.score + 0.5), answer(l), [40, 7, 3][i], rng.gauss(0, 0.5),
                rng.uniform(0.2, 2), rng.random(), rng.random(), rng.random(),
            )
        )  # fmt: skip
    return pairs


PAIRS = made()


@dataclass(frozen=True)
class Part:
    """A part with settings that let nothing hide, and its formula."""

    name: str
    formula: Callable[..., Any]
    settings: Mapping[str, Any]
    state: Mapping[str, Any]

    @property
    def label(self) -> str:
        return " ".join([self.name, *(str(v) for v in self.settings.values() if isinstance(v, (str, bool)))])


def part(name: str, formula: Callable[..., Any], state: Mapping[str, Any] | None = None, **settings: Any) -> Part:
    return Part(name, formula, settings, state or {})


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def dot(a: list[float], b: tuple[float, ...]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def side_of(p: Pair, side: int) -> Answer:
    return p.l if side else p.w


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011) with Python's integers."""
    (a, b, c, d), (k, l) = counter, key  # noqa: E741
    for i in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            q // 2**32 ^ b ^ (k + i * 0x9E3779B9) % 2**32, q % 2**32,
            p // 2**32 ^ d ^ (l + i * 0xBB67AE85) % 2**32, p % 2**32,
        )  # fmt: skip
    return a, b, c, d


def uniform(counter: tuple[int, int, int, int], key: tuple[int, int]) -> float:
    high, low, *_ = philox(counter, key)
    return (high * 2**20 + low // 2**12 + 0.5) / 2**52


# Token weights: (pair, side, own log-probs) -> weight of each token. The rule is read off the unmoved answer: no weight
# has a gradient.
def shorter(p: Pair) -> int:
    return min(len(p.w.logps), len(p.l.logps))


def sampled(p: Pair, side: int, logps: tuple[float, ...]) -> list[float]:
    drawn = [uniform((p.index, j, side, 1), (SEED, 4)) for j in range(len(logps))]
    smallest = sorted(drawn)[: shorter(p)]
    return [float(x in smallest) for x in drawn]


def turns(p: Pair, side: int, logps: tuple[float, ...]) -> list[float]:
    of, g = side_of(p, side).turns, 0.6
    total = max(of) + 1
    return [g**j * (1 - g ** (total - j)) / (1 - g**total) for j in of]


def guided(p: Pair, side: int, logps: tuple[float, ...]) -> list[float]:
    return [1 + (-0.4 if side else 0.4) * q for q in side_of(p, side).guide]


TOKENS = [
    part("all", lambda p, side, logps: [1.0] * len(logps)),
    part("prefix", lambda p, side, logps: [1.0 if j < shorter(p) else 0.3 for j in range(len(logps))], alpha=0.3),
    part("sampled", sampled, seed=4),
    part("differing", lambda p, side, logps: [
        1 + min(math.exp(-x), 1.7) * d for x, d in zip(logps, side_of(p, side).differs, strict=True)], delta=1.7),
    part("turns", turns, gamma=0.6),
    part("guided", guided, strength=0.4),
]  # fmt: skip


def weigh(p: Pair, side: int, token: Part, answer: Answer, of_reference: bool = False) -> list[float]:
    found: list[float] = token.formula(p, side, answer.reference if of_reference else answer.logps)
    return found


@dataclass(frozen=True)
class Sums:
    """An answer under the token weights: policy, reference, number of tokens."""

    policy: float
    reference: float
    count: float
    second: float


def mixed(a: Sums) -> float:
    low, high = sorted((0.9 * a.reference, 1.1 * a.reference))
    second = min(max(a.second, low), high)
    return a.policy + math.log(0.6 * math.exp(-a.reference) + 0.4 * math.exp(-second))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


SCORES = [
    part("ratio_sum", lambda a: a.policy - a.reference),
    part("sum", lambda a: a.policy),
    part("mean", lambda a: a.policy / a.count),
    part("odds", lambda a: odds(a.policy / a.count)),
    part("ratio_mean", lambda a: (a.policy - a.reference) / a.count),
    part("ratio_entropy", lambda a: 0.8 * a.policy - a.reference, alpha=0.8),
    part("ratio_mixed", mixed, weight=0.4, clip=0.1),
]


@dataclass(frozen=True)
class Scored:
    """A pair with its rewards; `base` is the same before a log-prob was moved, for what has no gradient."""

    pair: Pair
    rewards: tuple[float, float]
    sums: tuple[Sums, Sums]
    base: Scored | None = None

    @property
    def gap(self) -> float:
        return self.rewards[0] - self.rewards[1]

    @property
    def still(self) -> Scored:
        return self.base or self

    @property
    def means(self) -> list[float]:
        """Mean log-probs, each token once."""
        return [sum(a.logps) / len(a.logps) for a in (self.pair.w, self.pair.l)]

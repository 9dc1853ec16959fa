"""Margins, links, weights and uncertain labels in plain floats; the second half of the oracle (see `plain_pairs`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.objective.plain_pairs import (
    BETA,
    GAMMA,
    SCORES,
    SEED,
    STEP,
    TOKENS,
    Pair,
    Part,
    Scored,
    ls,
    part,
    s,
    uniform,
)


def instance(x: Scored) -> float:
    w, l = ((a.policy - a.reference) / a.count for a in x.still.sums)  # noqa: E741
    return BETA * 0.3 * (w - l - 0.15) / 0.8


def shared(x: Scored) -> float:
    share = 0.0
    for total in (0.05, -0.02):
        step = 2.0 * (1 + share) + GAMMA * s(GAMMA * math.exp(share) - x.still.gap)
        share = share - 0.25 * step - total
    return GAMMA * math.exp(share) - GAMMA


# What is subtracted from the gap of the rewards beside gamma.
MARGINS = [
    part("none", lambda x: 0.0),
    part("column", lambda x: 0.7 * x.pair.offset, column="offset", scale=0.7),
    part("length", lambda x: -0.2 * (len(x.pair.w.logps) - len(x.pair.l.logps)), alpha=0.2),
    part("chosen_drop", lambda x: 3.0 * max(0.0, -x.rewards[0]), weight=3.0),
    part("shift", lambda x: (0.6 - 1) * x.rewards[1], factor=0.6),
    part("scaled_rejected", lambda x: (x.pair.w.score - x.pair.l.score - 1) * x.rewards[1]),
    part("score_gap", lambda x: 0.8 * math.log(x.pair.w.score - x.pair.l.score), alpha=0.8, ratio=False),
    part("score_gap", lambda x: 0.8 * math.log(x.pair.w.score / x.pair.l.score), alpha=0.8, ratio=True),
    part("other_reward", lambda x: x.gap - (x.gap - 0.4 * (x.pair.w.other_reward - x.pair.l.other_reward)) / 0.6,
         column="other_reward", weight=0.4),
    part("sequence_kl", lambda x: BETA * 0.7 * (x.pair.l.kl - x.pair.w.kl), alpha=0.7, stop=True),
    part("sequence_kl", lambda x: BETA * 0.7 * (x.pair.l.kl - x.pair.w.kl), alpha=0.7, stop=False),
    part("instance", instance, {"gap_mean": 0.15, "gap_spread": 0.8}, alpha=0.3),
    part("shared", shared, {"log_normalisers": [0.05, -0.02], "queue": [], "population": 1.0}, tau=2.0),
    part("batch_beta", lambda x: (1 - 1.4) * x.gap, {"factor": 1.4}),
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a link reads: rewards and margin under the label in question."""

    rewards: tuple[float, float]
    margin: float
    pair: Pair
    flipped: bool = False

    @property
    def unscaled(self) -> tuple[float, float]:
        return self.rewards[0] / BETA, self.rewards[1] / BETA


def bernoulli_kl(a: float, b: float) -> float:
    return s(a) * (ls(a) - ls(b)) + s(-a) * (ls(-a) - ls(-b))


def to_score(x: Seen) -> float:
    return 0.7 * (x.pair.w.score - x.pair.l.score)


def sppo(x: Seen, p: float) -> float:
    return (x.unscaled[0] - (p - 0.5) / BETA) ** 2 + (x.unscaled[1] + (p - 0.5) / BETA) ** 2


def targets(x: Seen, temperature: float) -> tuple[float, float]:
    up = s((x.pair.w.score - x.pair.l.score) / temperature)
    return up, 1 - up


def nca_list(x: Seen) -> float:
    pulled = sum(t * ls(r) for t, r in zip(targets(x, 0.4), x.rewards, strict=True))
    return -pulled - (ls(-x.rewards[0]) + ls(-x.rewards[1])) / 2


def infonca(x: Seen) -> float:
    up, down = targets(x, 0.4)
    return -up * ls(x.rewards[0] - x.rewards[1]) - down * ls(x.rewards[1] - x.rewards[0])


def kto(x: Seen, up: float, down: float) -> float:
    return 1.3 * s(BETA * up - x.rewards[0]) + 0.7 * s(x.rewards[1] - BETA * down)


SIDES = {"desirable": 1.3, "undesirable": 0.7}
LINKS = [
    part("logistic", lambda x: -ls(x.margin)),
    part("hinge", lambda x: max(0.0, 0.9 - x.margin), delta=0.9),
    part("squared", lambda x: (x.margin / BETA - 0.5 / BETA) ** 2),
    part("none", lambda x: 0.0),
    part("exo", lambda x: s(x.margin) * (ls(x.margin) - math.log(0.95)) + s(-x.margin) * (ls(-x.margin) - math.log(0.05)),
         epsilon=0.05),
    part("discopop", lambda x: -s(-x.margin / 0.5) * ls(x.margin) + s(x.margin / 0.5) * math.exp(-x.margin), tau=0.5),
    part("focal", lambda x: -(s(x.margin) ** 0.4) * ls(x.margin), power=0.4),
    part("reward_gap", lambda x: (x.margin - to_score(x)) ** 2, eta=0.7, distance="squared"),
    part("reward_gap", lambda x: bernoulli_kl(to_score(x), x.margin), eta=0.7, distance="target_model"),
    part("reward_gap", lambda x: bernoulli_kl(x.margin, to_score(x)), eta=0.7, distance="model_target"),
    part("kto", lambda x: kto(x, 0.4, 0.4), kl=0.4, **SIDES),
    part("kto_mismatched", lambda x: kto(x, 0.9, 0.9), {"kl": 0.9}, **SIDES),
    # An answer is measured against the half that it is not in, whatever its label.
    part("kto_pair", lambda x: kto(x, *((0.2, 0.6) if x.flipped else (0.6, 0.2))), {"kl_chosen": 0.2, "kl_rejected": 0.6},
         **SIDES),
    part("bce", lambda x: -ls(x.rewards[0] - 0.2) - ls(0.2 - x.rewards[1]), shift=0.2),
    part("bco", lambda x: -ls(x.rewards[0] - 0.1) - ls(0.1 - x.rewards[1]), {"shift": 0.1, "seen": 8.0}),
    part("nca", lambda x: -ls(x.rewards[0]) - (ls(-x.rewards[0]) + ls(-x.rewards[1])) / 2),
    part("apo_zero", lambda x: 1 - s(x.rewards[0]) + s(x.rewards[1])),
    part("apo_down", lambda x: s(x.rewards[0]) + 1 - s(x.margin)),
    part("sppo", lambda x: sppo(x, 1.0)),
    part("sppo_soft", lambda x: sppo(x, x.pair.wins)),
    part("calibrated", lambda x: -ls(x.margin / BETA) + 0.6 * sppo(x, 1.0), weight=0.6),
    part("infonca", infonca, temperature=0.4),
    part("nca_list", nca_list, temperature=0.4),
    part("exo_list", lambda x: bernoulli_kl(x.rewards[0] - x.rewards[1], (x.pair.w.score - x.pair.l.score) / 0.4),
         temperature=0.4),
    # Of two answers the better one is above the mean, and both are as far from it.
    part("swepo", lambda x: -ls(x.rewards[0] - x.rewards[1]), alpha=0.8, power=2.0),
]  # fmt: skip


def omni(x: Scored) -> float:
    quality = s(0.7 * (x.pair.w.score - x.pair.l.score))
    return quality * (1 - s(BETA * (x.means[0] - x.means[1]) - 0.4)) ** 2


def on_policy(x: Scored, clamp: bool) -> float:
    likely = sum(m - a.log_p2 for m, a in zip(x.still.means, (x.pair.w, x.pair.l), strict=True))
    return math.exp(min(likely, 0.0) if clamp else likely)


def kept(x: Scored) -> float:
    z = (x.still.gap / BETA - 0.1) / 1.2
    noise = -math.log(-math.log(uniform((x.pair.index, STEP, 0, 0), (SEED, 0))))
    return 1 / 0.7 if -(z**2) / 2 + noise > -0.4 else 0.0


WEIGHTS = [
    part("none", lambda x: 1.0),
    part("column", lambda x: x.pair.weight, column="weight"),
    part("similarity", lambda x: math.exp(-1.5 * x.pair.distance), column="semantic_distance", alpha=1.5),
    part("on_policy", lambda x: on_policy(x, True), clamp=True),
    part("on_policy", lambda x: on_policy(x, False), clamp=False),
    part("omni", omni, eta=0.7, focus=2.0, tau=0.4),
    part("kept", kept, {"gap_mean": 0.1, "gap_spread": 1.2, "threshold": -0.4, "kept": 0.7, "step": STEP}),
]


def flips(x: Pair, e: float) -> tuple[float, float]:
    """Robust DPO's estimate of the clean label's loss: weights of the data's label and of the opposite one."""
    return ((1 - e) * x.sure - e * (1 - x.sure)) / (1 - 2 * e), ((1 - e) * (1 - x.sure) - e * x.sure) / (1 - 2 * e)


# How sure a label is: weights of the loss under the label, and under the opposite one.
LABELS = [
    part("certain", lambda x: (1.0, 0.0)),
    part("smooth", lambda x: (0.8, 0.2), label_smoothing=0.2),
    part("unbiased", lambda x: (0.8 / 0.6, -0.2 / 0.6), label_smoothing=0.2, label_model="unbiased"),
    part("column", lambda x: (x.sure, 1 - x.sure), label_column="sure"),
    part("column smooth", lambda x: (0.8 * x.sure + 0.2 * (1 - x.sure), 0.8 * (1 - x.sure) + 0.2 * x.sure),
         label_column="sure", label_smoothing=0.2),
    part("column unbiased", lambda x: flips(x, 0.2), label_column="sure", label_smoothing=0.2, label_model="unbiased"),
]  # fmt: skip

KINDS = {"score": SCORES, "token": TOKENS, "margin": MARGINS, "link": LINKS, "weight": WEIGHTS, "label": LABELS}
Cell = dict[str, Part]

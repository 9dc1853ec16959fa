"""Sweeps drawn at random, of which the truth is known: `coverage.py` asks how often their intervals hold it.

A run wins a prompt where a latent sum is above zero: of the prompt, the interaction of prompt and point, the seed, which
acts on all points alike, the training, and the prompt's own draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from alphapo_cli.sweep import intervals

Array = Any
# Standard deviations on the latent scale, where a prompt's own draw has 1; a training's, in the outcome.
PROMPT, INTERACTION, SEED = 0.7, 0.4, 0.2
WIDE = math.sqrt(PROMPT**2 + INTERACTION**2 + SEED**2 + 1)
SLOPE = 1 / (WIDE * math.sqrt(2 * math.pi))  # outcome per latent unit at a rate of one half
PROMPTS = 256


@dataclass(frozen=True)
class World:
    """Points and seeds of a sweep, and what differs between them; `length`: of correlation over alpha, spacing 0.25."""

    points: int
    seeds: int
    training: float | Sequence[float]  # s.d. of training noise, by point
    gain: float = 0.0  # of the point in the middle, in outcome
    drop: float = 0.0  # by which it falls where it collapses
    collapse: float = 0.0  # share of its trainings that collapse
    length: float = 0.0

    def draw(self, rng: np.random.Generator) -> Array:
        """Wins [K, S, P]."""
        k, s = self.points, self.seeds
        noise = rng.normal(size=(k, s))
        if self.length:
            distance = np.subtract.outer(np.arange(k), np.arange(k)) / 4 / self.length
            noise = np.linalg.cholesky(np.exp(-(distance**2) / 2) + 1e-9 * np.eye(k)) @ noise
        latent = noise * (np.broadcast_to(self.training, k) / SLOPE)[:, None]
        latent[k // 2] += (self.gain - self.drop * (rng.random(s) < self.collapse)) / SLOPE
        latent = latent + rng.normal(size=s) * SEED
        prompts = rng.normal(size=(1, 1, PROMPTS)) * PROMPT + rng.normal(size=(k, 1, PROMPTS)) * INTERACTION
        drawn: Array = (latent[:, :, None] + prompts + rng.normal(size=(k, s, PROMPTS)) > 0).astype(float)
        return drawn


def noisy(points: int, deviation: float, ratio: float, at: int = 0) -> tuple[float, ...]:
    """Deviations by point: one is `ratio` times as noisy as the others."""
    return tuple(deviation * ratio if k == at % points else deviation for k in range(points))


@dataclass(frozen=True)
class Cells:
    """Five cells that share prompts and seeds, of the same true rate; what is said of the first is apart."""

    seeds: int
    training: Sequence[float]  # s.d. of training noise in the outcome, by cell
    rate: float = 0.5
    drop: float = 0.0  # by which the first falls where it collapses
    collapse: float = 0.0  # share of its trainings that collapse

    def held(self, rng: np.random.Generator, repeats: int) -> tuple[list[bool], list[bool]]:
        """Whether the intervals of the first cell, and those of the others, hold the true rate.

        With one seed it is that of the trained model, with several that of the alpha.
        """
        normal, seeds = NormalDist(), self.seeds
        training = np.array(self.training) / SLOPE
        wide = np.sqrt(WIDE**2 + training**2)
        shift, fall = normal.inv_cdf(self.rate) * wide, self.drop / SLOPE
        fallen = normal.cdf((shift[0] - fall) / wide[0])
        truths = [(1 - self.collapse) * self.rate + self.collapse * fallen, *[self.rate] * (len(training) - 1)]
        first: list[bool] = []
        others: list[bool] = []
        for _ in range(repeats):
            effects = rng.normal(size=seeds) * SEED + rng.normal(size=(len(training), seeds)) * training[:, None]
            effects += shift[:, None]
            effects[0] -= fall * (rng.random(seeds) < self.collapse)
            fixed = rng.normal(size=(1, 1, PROMPTS)) * PROMPT
            fixed = fixed + rng.normal(size=(len(training), 1, PROMPTS)) * INTERACTION
            latent = effects[:, :, None] + fixed + rng.normal(size=(len(training), seeds, PROMPTS))
            found = intervals.means([dict(enumerate(point)) for point in (latent > 0).astype(float)])
            if seeds == 1:
                truths = [normal.cdf(x) for x in effects[:, 0] / math.sqrt(WIDE**2 - SEED**2)]
            hits = [e is not None and e.low <= t <= e.high for e, t in zip(found, truths, strict=True)]
            first.append(hits[0])
            others += hits[1:]
        return first, others

"""Augment: further rows made from pairs.

    goal           every pair twice (reward-augmented data, arXiv 2410.08067): the system text asks for the chosen answer's
                   score, then, with the sides swapped, for the rejected one's
    other_prompts  RRM (arXiv 2409.13156): both answers against those that other prompts got, which do not answer this
                   prompt (8 rows a pair), and those against one another with p_chosen 0.5 (6 rows), from two permutations

What a row is worth then is a score of its own: under a goal g it is -(g - score)^2; to other prompts' answers it is none,
and `p_chosen` says how likely the chosen answer is the better one (`objective.label_column=p_chosen`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.rules import Pair
from alphapo_cli.pairs.schema import AugmentConfig

GOAL = (
    "You are an assistant that generates responses for the instruction while implicitly achieving the following target "
    "scores (on a scale of 1-10, where 1 is lowest and 10 is highest):\nOverall score: {score}."
)


@dataclass(frozen=True)
class Made:
    """A row of pairs.jsonl: a pair, and what augmentation adds to it. `p_chosen`: see above, None without augmentation."""

    pair: Pair
    system: str | None = None
    p_chosen: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def check(cfg: AugmentConfig) -> None:
    """Refuse (UsageError) a goal's text that does not name the score."""
    if cfg.by == "goal" and cfg.text is not None and "{score}" not in cfg.text:
        raise UsageError("augment.text: holds no {score}, where the goal is written; put it in")


def check_prompts(prompts: Sequence[Candidates], cfg: AugmentConfig) -> None:
    """Refuse (UsageError) prompts whose system text leaves no place for a goal's."""
    for prompt in prompts if cfg.by == "goal" else ():
        if prompt.messages[0]["role"] in ("system", "developer") or "system" in prompt.context:
            raise UsageError(
                f"augment.by=goal: {prompt.where or 'a prompt'} has a system text already; leave such rows out"
            )


def augment(pairs: Sequence[Pair], cfg: AugmentConfig, seed: int) -> list[Made]:
    """Make the rows of pairs.

    Args:
        pairs: n pairs.
        cfg: the settings.
        seed: of the permutations.

    Returns:
        n rows without augmentation; 2 n for a goal, 15 n for two permutations with neutral rows.

    Raises:
        UsageError: a goal needs scores that the pairs do not have.
    """
    if cfg.by == "goal":
        return [row for pair in pairs for row in _goals(pair, cfg.text or GOAL)]
    if cfg.by == "other_prompts":
        return _other_prompts(pairs, cfg, seed)
    return [Made(pair) for pair in pairs]


def _goals(pair: Pair, text: str) -> list[Made]:
    if pair.score_chosen is None or pair.score_rejected is None:
        raise UsageError("augment.by=goal: the pairs have no scores to ask for; give scores, or name a scorer")
    far = -((pair.score_chosen - pair.score_rejected) ** 2)
    better = replace(pair, score_chosen=0.0, score_rejected=far)
    worse = replace(better, chosen=pair.rejected, rejected=pair.chosen)
    return [
        Made(row, text.replace("{score}", f"{goal:g}"), columns={"goal": goal})
        for row, goal in ((better, pair.score_chosen), (worse, pair.score_rejected))
    ]


def _other_prompts(pairs: Sequence[Pair], cfg: AugmentConfig, seed: int) -> list[Made]:
    """Rows of every pair, then those with answers to other prompts; an answer that reads the same makes no row."""
    ordered = sorted(pairs, key=lambda pair: pair.key)
    found = [Made(pair, p_chosen=1.0) for pair in pairs]
    shifts = _shifts(len(ordered), cfg.permutations, seed)
    place = {pair.key: n for n, pair in enumerate(ordered)}
    for pair in pairs:
        others: list[Answer] = []
        for shift in shifts:
            other = ordered[(place[pair.key] + shift) % len(ordered)]
            if other.candidates.key != pair.candidates.key:
                others += [other.chosen, other.rejected]
        own = (pair.chosen, pair.rejected)
        rows = [(mine, theirs, 1.0) for mine, theirs in itertools.product(own, others)]
        rows += [(a, b, 0.5) for a, b in itertools.combinations(others, 2)] if cfg.neutral else []
        found += [
            Made(Pair(pair.candidates, chosen, rejected, None, None), p_chosen=p)
            for chosen, rejected, p in rows
            if chosen.text != rejected.text
        ]
    return found


def _shifts(n: int, wanted: int, seed: int) -> list[int]:
    """Different cyclic shifts: permutations of n rows that leave none in its place."""
    from random import Random

    return Random(f"{seed} other prompts").sample(range(1, n), min(wanted, n - 1)) if n > 1 else []

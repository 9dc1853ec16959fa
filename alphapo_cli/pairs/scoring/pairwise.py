"""Scorers that compare two answers at a time: models of pairs, and the judges of `alphapo eval`.

win_probability   mean probability to win against each answer, itself (1/2) included: K (K - 1) / 2 comparisons
(SPPO, arXiv 2405.00675)
tournament        winners of a knock-out meet winners and losers meet losers; 1 for the best, -1 for the worst, 0 for
the others, and 0 for all where the best does not beat the worst: 11 comparisons of 8 answers (INPO,
arXiv 2407.00617)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.judge import Judge
from alphapo_cli.evaluation.judges.protocol import Pair as Comparison
from alphapo_cli.generation.prompt import as_text
from alphapo_cli.pairs.candidates import Candidates
from alphapo_cli.pairs.scoring.classifier import Classifier
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Scores, Whole

Compare = Callable[[Sequence[tuple[int, int]]], list[float]]  # pairs of answers -> P(the first one is better)


def win_probabilities(answers: int, compare: Compare) -> list[float]:
    """Mean probability of each answer to win against each, itself included.

    Args:
        answers: K.
        compare: gives the probability of the first of two.

    Returns:
        [K] probabilities; their mean is 1/2.
    """
    duels = list(itertools.combinations(range(answers), 2))
    total = [0.5] * answers
    for (i, j), p in zip(duels, compare(duels), strict=True):
        total[i] += p
        total[j] += 1 - p
    return [value / answers for value in total]


def tournament(answers: int, compare: Compare) -> list[float]:
    """Knock-out for the best and for the worst, which share their first round; ties go to the first.

    Args:
        answers: K, at least 2.
        compare: gives the probability of the first of two.

    Returns:
        [K]: 1 for the best, -1 for the worst, 0 for the others; all 0 where the best does not beat the worst.
    """

    def round_of(players: Sequence[int]) -> tuple[list[int], list[int]]:
        duels = list(zip(players[::2], players[1::2], strict=False))
        alone = [players[-1]] if len(players) % 2 else []
        results = compare(duels)
        winners = [i if p >= 0.5 else j for (i, j), p in zip(duels, results, strict=True)]
        losers = [j if p >= 0.5 else i for (i, j), p in zip(duels, results, strict=True)]
        return [*winners, *alone], losers

    winners, losers = round_of(range(answers))
    losers += winners[-1:] if answers % 2 else []  # who met nobody yet may be the worst one, too
    while len(winners) > 1:
        winners, _ = round_of(winners)
    while len(losers) > 1:
        alone = [losers[-1]] if len(losers) % 2 else []
        _, worse = round_of(losers[: len(losers) - len(alone)])
        losers = [*worse, *alone]
    best, worst = winners[0], losers[0]
    found = [0.0] * answers
    if best != worst and compare([(best, worst)])[0] > 0.5:
        found[best], found[worst] = 1.0, -1.0
    return found


AGGREGATES = {"win_probability": win_probabilities, "tournament": tournament}


class PairModel(Whole):
    """A sequence classifier that reads a prompt and two answers; sigmoid(logit) is the probability of the first one.

    Both orders are asked and averaged. The form is PairRM's (arXiv 2306.02561), as text.
    """

    together = True
    free = False

    def __init__(self, column: str, cfg: ScorerConfig, cache: Path) -> None:
        self.column, self.cfg = column, cfg
        self.batch: int | None = 1
        if cfg.aggregate not in AGGREGATES:
            raise UsageError(
                f"scorer.aggregate={cfg.aggregate}: is for scorer=judge; type one of {', '.join(AGGREGATES)}"
            )
        for part in ("{prompt}", "{first}", "{second}"):
            if part not in cfg.pair_format:
                raise UsageError(f"scorer.pair_format: holds no {part}; put it in")
        self.classifier = Classifier(cfg, cache)
        self.label = self.classifier.label()

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        cfg = self.cfg
        settings = {"bos": cfg.bos, "format": cfg.pair_format, "aggregate": cfg.aggregate, "label": self.label}
        if self.cfg.aggregate == "tournament":
            settings["alone"] = "both"  # tournaments that were kept before never made an odd last answer the worst
        return {"scorer": "pair_model", **settings, **self.classifier.identity}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`."""

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`; an answer of which an input is too long has no score."""
        return [self._of(prompt) for prompt in prompts]

    def close(self) -> None:
        """See `Scorer.close`."""
        self.classifier.close()

    def _of(self, prompt: Candidates) -> list[float | None]:
        limit, texts = self.classifier.limit, [answer.text for answer in prompt.answers]
        longest = max((len(self._ids(prompt, text, text)) for text in texts), default=0)
        if len(texts) < 2 or (limit is not None and longest > limit):
            return [None] * len(texts)

        def compare(duels: Sequence[tuple[int, int]]) -> list[float]:
            rows = [self._ids(prompt, texts[a], texts[b]) for i, j in duels for a, b in ((i, j), (j, i))]
            size = self.classifier.batch_size
            parts = [rows[n : n + size] for n in range(0, len(rows), size)]
            logits = torch.cat([self.classifier.logits(part)[:, self.label] for part in parts]).double()
            first = torch.sigmoid(logits).view(-1, 2)
            return [float(value) for value in (first[:, 0] + 1 - first[:, 1]) / 2]

        return list(AGGREGATES[self.cfg.aggregate](len(texts), compare))

    def _ids(self, prompt: Candidates, first: str, second: str) -> list[int]:
        parts = {"{prompt}": _whole(prompt), "{first}": first, "{second}": second}
        text = self.cfg.pair_format
        for name, value in parts.items():
            text = text.replace(name, value)
        return self.classifier.with_bos(self.classifier.tokenizer(text)["input_ids"])


class Judged(Whole):
    """A judge of `alphapo eval`: its preference between two answers, in all pairs of a prompt."""

    together = True
    batch: int | None = None  # an engine starts once for all
    free = False

    def __init__(self, column: str, cfg: ScorerConfig, judge: Judge, folder: Path) -> None:
        if cfg.aggregate != "win_probability":
            raise UsageError(
                f"scorer.aggregate={cfg.aggregate}: a judge is asked everything at once; type win_probability or rubric"
            )
        self.column, self.judge, self.folder = column, judge, folder

    def identity(self) -> dict[str, Any]:
        """See `Scorer.identity`."""
        return {"scorer": "judge", **self.judge.identity()}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """See `Scorer.check`."""
        self.judge.check(self._comparisons(prompts) or [Comparison(_whole(p), "", " ") for p in prompts], self.folder)

    def score(self, prompts: Sequence[Candidates]) -> Scores:
        """See `Scorer.score`; a prompt with a judgement that failed has no scores."""
        verdicts = iter(self.judge.judge(self._comparisons(prompts), self.folder).verdicts)
        found: Scores = []
        for prompt in prompts:
            size = len(prompt.answers)
            own = [next(verdicts) for _ in range(size * (size - 1) // 2)]
            preferences = [None if verdict is None else verdict.preference for verdict in own]
            if size < 2 or any(preference is None for preference in preferences):
                found.append([None] * size)
                continue
            # 1: the first one is better, 2: the second one.
            first = [2.0 - preference for preference in preferences if preference is not None]
            found.append(list(win_probabilities(size, lambda duels, first=first: first)))  # type: ignore[misc]
        return found

    def close(self) -> None:
        """See `Scorer.close`."""

    def _comparisons(self, prompts: Sequence[Candidates]) -> list[Comparison]:
        return [
            Comparison(_whole(prompt), first.text, second.text)
            for prompt in prompts
            for first, second in itertools.combinations(prompt.answers, 2)
        ]


def _whole(prompt: Candidates) -> str:
    """The prompt as one text."""
    return as_text(tuple(prompt.messages))

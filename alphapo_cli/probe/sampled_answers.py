"""Answers sampled from the policy during training, to the same prompts every time.

In the embedded world they are scored by the true reward against reference answers. Those are drawn once, from the
policy before its first step, with other seeds than the policy's own, so that an unchanged policy wins about half of the
time. A prompt's seed depends on the run's seed and the prompt alone: all cells of a sweep get the same draws. With
weights of 16 bits each answer is sampled by itself (`probe.exact`), since logits then depend on the batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphapo_cli.modeling.sampling import sample
from alphapo_cli.runtime.memo import Memoize, no_memo
from alphapo_cli.runtime.progress import Progress
from alphapo_cli.runtime.statistics.bounded_mean import mean_interval

NGRAM = 4
CONFIDENCE = 0.95
TrueReward = Callable[[str, str], float]  # (instruction, answer)
Keep = Callable[[str, list[dict[str, str]]], None]  # (name of a file, its rows in AlpacaEval's format)


@dataclass(frozen=True)
class Answers:
    """One answer to each prompt."""

    outputs: list[str]
    ids: list[list[int]]  # without the end token
    rewards: list[float]  # empty without a true reward


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. `exact`: each by itself; `refusals`: openings of answers that refuse, none: not measured."""

    max_new_tokens: int
    temperature: float
    exact: bool = False
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplePrompts:
    """The prompts: texts (for samples/) and the token ids that the model reads."""

    dataset: str
    texts: list[str]
    ids: list[list[int]]
    true_reward: TrueReward | None = None


class SampledAnswers:
    """Samples one policy over a run and, with a true reward, scores it."""

    def __init__(
        self, tokenizer: Any, end_ids: int | Sequence[int], sampling: Sampling, prompts: SamplePrompts, seed: int,
        name: str, keep: Keep, memoize: Memoize = no_memo,
    ) -> None:  # fmt: skip
        """Set up.

        Args:
            tokenizer: decodes the answers.
            end_ids: tokens that end an answer.
            sampling: how answers are sampled.
            prompts: what is answered.
            seed: the run's.
            name: of the policy, in the rows of its answers.
            keep: writes answers to a file of the run's samples/.
            memoize: for answers of the policy before its first step, which other runs may share.
        """
        self.memoize, self.keep = memoize, keep
        self.tokenizer, self.sampling, self.prompts = tokenizer, sampling, prompts
        self.end_ids = [end_ids] if isinstance(end_ids, int) else list(end_ids)
        self.seed, self.name = seed, name
        self.reference: Answers | None = None

    def start(self, lm: Any) -> None:
        """Sample the reference answers, which are kept as reference.json."""
        reference: Answers = self.memoize(f"reference {self.seed}", lambda: self._answers(lm, "reference"))
        self.reference = reference
        self._keep("reference.json", reference, f"{self.name}-step-0")

    def measure(self, lm: Any, step: int) -> dict[str, float | None]:
        """Compute samples/* and glassbox/* of the policy as it is now; its answers are kept as step-N.json."""
        assert self.reference is not None
        draw = functools.partial(self._answers, lm, "policy")
        answers: Answers = self.memoize(f"policy {self.seed}", draw) if step == 0 else draw()
        self._keep(f"step-{step}.json", answers, self.name)
        length = _mean([len(ids) for ids in answers.ids])
        row: dict[str, float | None] = {
            "samples/length": length,
            "samples/repetition": _mean([repetition(ids) for ids in answers.ids]),
        }
        if self.sampling.refusals:
            row["samples/refusals"] = _mean([refuses(text, self.sampling.refusals) for text in answers.outputs])
        if self.prompts.true_reward is None:
            return row
        wins = [
            1.0 if ours > base else 0.5 if ours == base else 0.0
            for ours, base in zip(answers.rewards, self.reference.rewards, strict=True)
        ]
        low, high = mean_interval(np.array(wins), CONFIDENCE) or (None, None)
        return row | {
            "glassbox/true_reward": _mean(answers.rewards),
            "glassbox/true_win_rate": _mean(wins),
            "glassbox/true_win_rate/low": low,
            "glassbox/true_win_rate/high": high,
            "glassbox/length": length,
        }

    def write_texts(self, lm: Any, step: int) -> None:
        """Sample the policy as it is now; its answers are kept as step-N.json, and nothing is computed of them."""
        draw = functools.partial(self._answers, lm, "policy")
        answers: Answers = self.memoize(f"texts {self.seed}", draw) if step == 0 else draw()
        self._keep(f"step-{step}.json", answers, self.name)

    def _answers(self, lm: Any, role: str) -> Answers:
        seeds, alone = [_seed(self.seed, role, text) for text in self.prompts.texts], self.sampling.exact
        every, samples = len(seeds), []
        # One by one they take minutes; together there is nothing to count before the end.
        with Progress(every, "answers", "answers of the model", leave=False, quiet=not alone) as progress:
            for batch in [slice(n, n + 1) for n in range(every)] if alone else [slice(every)]:
                samples += sample(
                    lm,
                    self.prompts.ids[batch],
                    seeds[batch],
                    max_new_tokens=self.sampling.max_new_tokens,
                    temperature=self.sampling.temperature,
                    eos_ids=self.end_ids,
                    pad_id=self.tokenizer.pad_token_id,
                )
                progress.update(len(seeds[batch]))
        outputs = [self.tokenizer.decode(s.ids, skip_special_tokens=True) for s in samples]
        score = self.prompts.true_reward
        rewards = [] if score is None else [score(i, o) for i, o in zip(self.prompts.texts, outputs, strict=True)]
        return Answers(outputs, [s.ids for s in samples], rewards)

    def _keep(self, file: str, answers: Answers, generator: str) -> None:
        rows = [
            {"dataset": self.prompts.dataset, "instruction": i, "output": o, "generator": generator}
            for i, o in zip(self.prompts.texts, answers.outputs, strict=True)
        ]
        self.keep(file, rows)


def repetition(ids: Sequence[int]) -> float:
    """Share of an answer's token 4-grams that occur in it before; 0 for an answer too short to have two."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def refuses(answer: str, openings: Sequence[str]) -> bool:
    """Whether an answer begins with one of `openings` (2410.08847 section 6), without regard to case and leading space."""
    return answer.strip().lower().startswith(tuple(opening.strip().lower() for opening in openings))


def _seed(seed: int, role: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{role}/{text}".encode()).digest()[:8], "big") >> 1


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))

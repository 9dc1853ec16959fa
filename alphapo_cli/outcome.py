"""Outcomes in the embedded world: answers sampled from the policy, scored by the true reward.

The reference answers are drawn once, from the policy before its first step, with other seeds than the policy's own, so
that an unchanged policy wins about half of the time. A prompt's seed depends on the run's seed and on nothing else:
all cells of a sweep face the same draws.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.data import glassbox
from alphapo_cli.files import write_json
from alphapo_cli.sampling import sample
from alphapo_cli.schema import ProbeConfig


@dataclass(frozen=True)
class Answers:
    """One answer to each held-out instruction."""

    outputs: list[str]
    rewards: list[float]
    lengths: list[int]  # tokens, without the end token


class GlassboxOutcome:
    """Samples and scores one policy over a run; `folder` is the run's samples/."""

    def __init__(
        self,
        tokenizer: Any,
        cfg: ProbeConfig,
        prompts: list[list[int]],
        instructions: list[str],
        seed: int,
        folder: Path,
        name: str,
    ) -> None:
        self.tokenizer, self.cfg, self.prompts, self.instructions = tokenizer, cfg, prompts, instructions
        self.seed, self.folder, self.name = seed, folder, name
        self.reference: Answers | None = None

    def start(self, lm: Any) -> None:
        """Draw the reference answers and keep them in samples/reference.json."""
        self.reference = self._answers(lm, "reference")
        self._write("reference.json", self.reference, f"{self.name}-step-0")

    def measure(self, lm: Any, step: int) -> dict[str, float]:
        """glassbox/* of the policy as it is; its answers are kept in samples/step-N.json."""
        assert self.reference is not None
        answers = self._answers(lm, "policy")
        self._write(f"step-{step}.json", answers, self.name)
        wins = [
            1.0 if ours > base else 0.5 if ours == base else 0.0
            for ours, base in zip(answers.rewards, self.reference.rewards, strict=True)
        ]
        return {
            "glassbox/true_reward": _mean(answers.rewards),
            "glassbox/true_win_rate": _mean(wins),
            "glassbox/length": _mean(answers.lengths),
        }

    def _answers(self, lm: Any, role: str) -> Answers:
        samples = sample(
            lm,
            self.prompts,
            [_seed(self.seed, role, text) for text in self.instructions],
            max_new_tokens=self.cfg.max_new_tokens,
            temperature=self.cfg.temperature,
            eos_ids=[self.tokenizer.eos_token_id],
            pad_id=self.tokenizer.pad_token_id,
        )
        outputs = [self.tokenizer.decode(s.ids, skip_special_tokens=True) for s in samples]
        rewards = [glassbox.true_reward(i, o) for i, o in zip(self.instructions, outputs, strict=True)]
        return Answers(outputs, rewards, [len(s.ids) for s in samples])

    def _write(self, file: str, answers: Answers, generator: str) -> None:
        rows = [
            {"dataset": "glassbox", "instruction": i, "output": o, "generator": generator}
            for i, o in zip(self.instructions, answers.outputs, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / file, rows)


def _seed(seed: int, role: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{role}/{text}".encode()).digest()[:8], "big") >> 1


def _mean(values: list[float] | list[int]) -> float:
    return float(sum(values) / len(values))

"""The embedded world's true reward as judge: exact and free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.judge import Judged, Verdict
from alphapo_cli.evaluation.judges.protocol import Pair


def check_instructions(instructions: Sequence[str]) -> None:
    """Refuse (UsageError) instructions that are not of the embedded world."""
    for instruction in instructions:
        try:
            world.parse(instruction)
        except UsageError as error:
            raise UsageError(f"judge glassbox: {error}; choose another judge (judge=openai, judge=vllm)") from error


class Glassbox:
    """The output with the larger true reward wins; equal rewards are a draw."""

    annotator = "alphapo_glassbox"

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`."""
        return {"annotator": self.annotator}

    def check(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> None:
        """See `Judge.check`; every instruction must be of the embedded world."""
        check_instructions([pair.instruction for pair in pairs])

    def judge(self, pairs: Sequence[Pair], folder: Path, *, asking: bool = True) -> Judged:
        """See `Judge.judge`."""
        rewards = [
            (world.true_reward(pair.instruction, pair.output_1), world.true_reward(pair.instruction, pair.output_2))
            for pair in pairs
        ]  # fmt: skip
        verdicts: list[Verdict | None] = [
            Verdict(2.0 if model > base else 1.0 if model < base else 1.5, {"true_rewards": [base, model]}, 0.0, 0.0)
            for base, model in rewards
        ]
        wins = [1.0 if model > base else 0.0 if model < base else 0.5 for base, model in rewards]
        # The probe's metrics on the same samples, in its units: a share, not percent.
        facts = {
            "true_win_rate": sum(wins) / len(wins),
            "true_reward": sum(model for _, model in rewards) / len(rewards),
            "true_reward_reference": sum(base for base, _ in rewards) / len(rewards),
        }
        return Judged(verdicts, facts)

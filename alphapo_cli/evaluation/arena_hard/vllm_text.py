"""Judge engine for a local model that writes its judgement: vLLM in a child process, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.arena_hard.replies import TextReply
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardJudgeConfig
from alphapo_cli.evaluation.judges.judge import Reply
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.evaluation.judges.vllm import VLLMEngine


class VLLMTextEngine(VLLMEngine):
    """Queries `cfg.model` for a text of at most `cfg.max_tokens` tokens.

    A temperature above 0 draws each text with the same seed, so that the same line gives the same verdicts.
    """

    cfg: ArenaHardJudgeConfig

    def identity(self) -> dict[str, Any]:
        """See `JudgeEngine.identity`."""
        found = {key: value for key, value in super().identity().items() if key != "top_logprobs"}
        return {**found, "temperature": self.cfg.temperature or 0.0}

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """Check that all questions but judge.max_failed leave room for judge.max_tokens in the judge's context."""
        long = sum(not self._fits(ids) for ids in self._encoded(asks))
        if long > self.cfg.max_failed:
            raise UsageError(
                f"judge.model={self.cfg.model}: {long} of {len(asks)} questions leave no room for "
                f"judge.max_tokens={self.cfg.max_tokens} in its context of {self.subject.context} tokens; lower "
                f"judge.max_tokens or take a judge with a longer one (judge.max_failed={long} leaves them out)"
            )

    def _fits(self, ids: Sequence[int]) -> bool:
        return self.subject.context is None or len(ids) + self.cfg.max_tokens <= self.subject.context

    def _reply(self, row: dict[str, Any], prompt_tokens: int, seconds: float) -> Reply:
        text = str(self.subject.tokenizer.decode(row["ids"], skip_special_tokens=True))
        tokens = prompt_tokens + len(row["ids"])
        return TextReply((), tokens, 0.0, seconds, text=text, finish=row["finish"])

    def _job(self, longest: int) -> dict[str, Any]:
        from alphapo_cli.config.schema import DataConfig
        from alphapo_cli.generation.vllm_process import plan

        sampling = {
            "temperature": self.cfg.temperature or 0.0,
            "max_tokens": self.cfg.max_tokens,
            "seed": 0,
            "stop_token_ids": list(self.subject.stop_ids(DataConfig(template="chat"))),
        }
        return plan(self.subject, self.cfg.vllm, longest + self.cfg.max_tokens, sampling, prefix_caching=True)

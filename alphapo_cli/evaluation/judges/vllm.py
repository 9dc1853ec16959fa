"""Judge engine for a local model: vLLM in a child process, without a server.

The questions are the same as for an endpoint. They are tokenised with the judge model's chat template, and the answer
is the log-probs of the first token, which do not depend on the sampled token.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.errors import AlphapoError, UsageError, missing_extra, say
from alphapo_cli.evaluation.judges.judge import JudgingResult, Record, Reply
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.evaluation.judges.verdict_mass import template_remedy
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.generation.thinking import Thinking, thinking_of
from alphapo_cli.runtime.progress import Progress


class VLLMEngine:
    """Queries `cfg.model` (a directory, a run directory or a hub name) for one token and its top log-probs.

    Raises:
        UsageError: vLLM is not installed, or the model is missing or has no chat template.
    """

    def __init__(self, cfg: JudgeConfig) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise missing_extra("vLLM", "vllm")
        from alphapo_cli.generation.schema import SubjectConfig
        from alphapo_cli.generation.target_model import find
        from alphapo_cli.storage.paths import cache_dir

        self.cfg = cfg
        self.subject = find(str(cfg.model), SubjectConfig(dtype=cfg.dtype), cache_dir(), key="judge.model")
        if not self.subject.tokenizer.chat_template:
            raise UsageError(
                f"judge.model={cfg.model}: its tokenizer has no chat template, so it cannot be asked; take an "
                "instruction-tuned model"
            )
        if self.subject.vllm_obstacle is not None:
            raise UsageError(f"judge.model={cfg.model}: {self.subject.vllm_obstacle}; save it with its adapter merged")
        self.model_identity = self.subject.identity(cache_dir())

    def identity(self) -> dict[str, Any]:
        """See `JudgeEngine.identity`."""
        variables = {"chat_template_kwargs": self.cfg.chat_template_kwargs} if self.cfg.chat_template_kwargs else {}
        return {"engine": "vllm", "model": self.model_identity, "top_logprobs": self.cfg.top_logprobs, **variables}

    def thinking(self) -> Thinking:
        """See `JudgeEngine.thinking`."""
        return thinking_of(self.subject.tokenizer, self._chat)

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """Check that all questions but judge.max_failed fit into the judge model's context."""
        if self.thinking().opens:
            say(f"note: judge.model={self.cfg.model}: {template_remedy(self.thinking())}", file=sys.stderr, flush=True)
        long = sum(not self._fits(ids) for ids in self._encoded(asks))
        if long > self.cfg.max_failed:
            raise UsageError(
                f"judge.model={self.cfg.model}: {long} of {len(asks)} questions are longer than its context of "
                f"{self.subject.context} tokens; take a judge with a longer one (judge.max_failed={long} leaves them out)"
            )

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> JudgingResult:
        """See `JudgeEngine.ask`."""
        encoded = self._encoded(asks)
        outcome = JudgingResult()
        kept = [number for number, ids in enumerate(encoded) if self._fits(ids)]
        for number in set(range(len(asks))) - set(kept):
            outcome.failed[asks[number].key] = f"longer than the context of {self.subject.context} tokens"
        if not kept:
            return outcome
        with tempfile.NamedTemporaryFile(prefix="alphapo-judge-", suffix=".log", delete=False) as file:
            log = Path(file.name)
        try:
            self._run([(asks[number], encoded[number]) for number in kept], log, record)
        except KeyboardInterrupt:
            outcome.interrupted, outcome.stopped = True, "interrupted"
        except UsageError:
            raise
        except AlphapoError as error:
            outcome.stopped = str(error)  # names the log
            return outcome
        log.unlink()
        return outcome

    def _run(self, asks: Sequence[tuple[Ask, list[int]]], log: Path, record: Record) -> None:
        from alphapo_cli.generation.parity import check_engine
        from alphapo_cli.generation.vllm_process import VLLMProcess

        tokenizer, began = self.subject.tokenizer, time.perf_counter()
        rows = [{"id": number, "ids": ids} for number, (_, ids) in enumerate(asks)]
        say(f"starting vLLM with the judge {self.cfg.model} ...", file=sys.stderr, flush=True)
        with VLLMProcess(self._job(max(len(ids) for _, ids in asks)), rows, log) as engine:

            def record_row(row: dict[str, Any]) -> None:
                ask, ids = asks[row["id"]]
                check_engine(ask.row + 1, ids, row["prompt_ids"], tokenizer)
                record(ask, self._reply(row, len(ids), time.perf_counter() - began))
                bar.update()

            for number, ids in engine.prompts():
                check_engine(asks[number][0].row + 1, asks[number][1], ids, tokenizer)
            began = time.perf_counter()
            with Progress(len(asks), "judgements") as bar:
                engine.answer(record_row)

    def _reply(self, row: dict[str, Any], prompt_tokens: int, seconds: float) -> Reply:
        """A finished request as the engine's answer."""
        decode = self.subject.tokenizer.decode
        top = tuple((str(decode([token])), logprob) for token, logprob in row["logprobs"])
        return Reply(top, tokens=prompt_tokens + 1, price=0.0, seconds=seconds)

    def _job(self, longest: int) -> dict[str, Any]:
        from alphapo_cli.generation.vllm_process import plan

        # All questions share a prefix, whose KV cache is reused.
        ends = list(self.subject.stop_ids(self._chat))
        sampling = {"temperature": 0.0, "max_tokens": 1, "logprobs": self.cfg.top_logprobs, "stop_token_ids": ends}
        return plan(self.subject, self.cfg.vllm, longest + 1, sampling, prefix_caching=True)

    @property
    def _chat(self) -> DataConfig:
        """How questions become token ids."""
        return DataConfig(template="chat", chat_template_kwargs=dict(self.cfg.chat_template_kwargs))

    def _encoded(self, asks: Sequence[Ask]) -> list[list[int]]:
        from alphapo_cli.data.tokenise import encode_prompt

        return [
            encode_prompt(
                tuple({"role": m.role, "content": m.content} for m in ask.messages), self.subject.tokenizer, self._chat
            )
            for ask in asks
        ]

    def _fits(self, ids: Sequence[int]) -> bool:
        return self.subject.context is None or len(ids) < self.subject.context

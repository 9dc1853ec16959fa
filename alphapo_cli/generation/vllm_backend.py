"""vLLM as a backend: one process for all answers that are missing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.generation import parity
from alphapo_cli.generation.backend import GenerationJob, Record, Request
from alphapo_cli.generation.vllm_process import VLLMProcess, plan
from alphapo_cli.modeling.sampling import until_end


class VLLMBackend:
    """`log`: the file for what vLLM says."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def generate(self, job: GenerationJob, requests: Sequence[Request], record: Record) -> dict[str, Any]:
        began = time.perf_counter()
        cfg, tokenizer = job.cfg.generation, job.subject.tokenizer

        def keep(row: dict[str, Any]) -> None:
            request = requests[row["id"]]
            parity.check_engine(request.row + 1, request.ids, row["prompt_ids"], tokenizer)
            record(request, until_end(row["ids"], job.stop_ids))

        with VLLMProcess(
            self._job(job, requests), self._rows(requests, greedy=cfg.temperature == 0), self.log
        ) as engine:
            for number, ids in engine.prompts():
                parity.check_engine(requests[number].row + 1, requests[number].ids, ids, tokenizer)
            started = time.perf_counter()
            engine.answer(keep)
            ended = time.perf_counter()
        return {"start_seconds": started - began, "generate_seconds": ended - started}

    @staticmethod
    def _job(job: GenerationJob, requests: Sequence[Request]) -> dict[str, Any]:
        cfg = job.cfg.generation
        longest = max(len(request.ids) for request in requests) + job.limit
        sampling = {
            "temperature": cfg.temperature,
            "top_p": cfg.top_p,
            "top_k": 0,
            "max_tokens": job.limit,
            "stop_token_ids": list(job.stop_ids),
        }
        # Cached prefixes change how prompts are put together, and with it the last bits of their logits.
        return plan(job.subject, cfg.vllm, longest, sampling, prefix_caching=False)

    @staticmethod
    def _rows(requests: Sequence[Request], *, greedy: bool) -> list[dict[str, Any]]:
        return [
            {"id": number, "ids": request.ids, **({} if greedy else {"sampling": {"seed": request.seed}})}
            for number, request in enumerate(requests)
        ]

"""Generation with vLLM: one engine process for all missing answers."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError
from alphapo_cli.generation import parity
from alphapo_cli.generation.backend import GenerationJob, Record, Request
from alphapo_cli.generation.vllm_process import VLLMProcess, plan
from alphapo_cli.modeling.declared import original_context
from alphapo_cli.modeling.sampling import Sample, until_end


class VLLMBackend:
    """A vLLM engine in a process of its own; `log` is the file of its output."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def generate(
        self, job: GenerationJob, requests: Sequence[Request], record: Record, done: Collection[tuple[int, int]] = ()
    ) -> dict[str, Any]:
        """See `Backend.generate`."""
        missing = [request for request in requests if request.key not in done]
        costs = [self._answer_all(job, alike, record) for alike in _of_one_rope(job, missing)]
        return {key: sum(cost[key] for cost in costs) for key in ("start_seconds", "generate_seconds")}

    def _answer_all(self, job: GenerationJob, requests: Sequence[Request], record: Record) -> dict[str, float]:
        """The answers of one engine."""
        began = time.perf_counter()
        tokenizer = job.subject.tokenizer

        def record_row(row: dict[str, Any]) -> None:
            request = requests[row["id"]]
            parity.check_engine(request.row + 1, request.ids, row["prompt_ids"], tokenizer)
            record(request, self._answer(row, job.stop_ids))

        with VLLMProcess(
            self._job(job, requests), self._rows(requests, greedy=job.temperature == 0), self.log
        ) as engine:
            for number, ids in engine.prompts():
                parity.check_engine(requests[number].row + 1, requests[number].ids, ids, tokenizer)
            started = time.perf_counter()
            engine.answer(record_row)
            ended = time.perf_counter()
        return {"start_seconds": started - began, "generate_seconds": ended - started}

    @staticmethod
    def _job(job: GenerationJob, requests: Sequence[Request]) -> dict[str, Any]:
        cfg = job.cfg.generation
        longest = max(len(request.ids) for request in requests) + job.limit
        sampling = {
            "temperature": job.temperature,
            "top_p": cfg.top_p,
            "top_k": cfg.top_k or 0,
            "max_tokens": job.limit,
            "stop_token_ids": list(job.stop_ids),
            "logprobs": 0,  # of the sampled tokens alone, under the model itself, whatever the temperature
        }
        # One sequence at a time: nothing else can be in its batch.
        engine = replace(cfg.vllm, max_num_seqs=1) if cfg.exact else cfg.vllm
        # Prefix caching changes how prompts are batched, and so the last bits of their logits.
        return plan(job.subject, engine, longest, sampling, prefix_caching=False)

    @staticmethod
    def _answer(row: dict[str, Any], stop_ids: Sequence[int]) -> Sample:
        """The answer of a finished request: how it ended is what the engine says; an end token is left out.

        Args:
            row: what the engine sent.
            stop_ids: the ids that end an answer.

        Returns:
            The answer.

        Raises:
            AlphapoError: the engine gave the request up.
        """
        ids, finish = row["ids"], row["finish"]
        if finish not in ("stop", "length", "repetition"):
            raise AlphapoError(f"vLLM: request {row['id']} ended with {finish!r} after {len(ids)} tokens")
        answer = until_end(ids, stop_ids)
        if finish == "stop" and answer.cut:  # by an end token of the engine's own
            answer = Sample(ids[:-1], cut=False)
        return answer._replace(logprob=row["logprob"])

    @staticmethod
    def _rows(requests: Sequence[Request], *, greedy: bool) -> list[dict[str, Any]]:
        return [
            {"id": number, "ids": request.ids, **({} if greedy else {"sampling": {"seed": request.seed}})}
            for number, request in enumerate(requests)
        ]


def _of_one_rope(job: GenerationJob, requests: Sequence[Request]) -> list[list[Request]]:
    # vLLM takes LongRoPE's factors for all sequences from the longest that an engine allows. Those that fit into the
    # original context get the short factors, as in transformers, whatever else is asked.
    original = original_context(job.subject.config)
    if original is None:
        return [list(requests)]
    short = [request for request in requests if len(request.ids) + job.limit <= original]
    long = [request for request in requests if len(request.ids) + job.limit > original]
    return [group for group in (short, long) if group]

"""Generation with transformers in this process, on the GPU if there is one."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from alphapo_cli.generation.backend import GenerationJob, Record, Request
from alphapo_cli.modeling.sampling import sample
from alphapo_cli.runtime.signals import deferred_signals


class TransformersBackend:
    """Batches of prompts of similar length, or of one (`generation.exact`); see `modeling.sampling` for the seeds."""

    def generate(
        self, job: GenerationJob, requests: Sequence[Request], record: Record, done: Collection[tuple[int, int]] = ()
    ) -> dict[str, Any]:
        """See `Backend.generate`."""
        began = time.perf_counter()
        if not sys.stderr.isatty():
            disable_progress_bar()  # of transformers, for loading weights
        settings, cfg = job.cfg.model, job.cfg.generation
        model = job.subject.load("cuda" if torch.cuda.is_available() else "cpu", settings.attention)
        loaded = time.perf_counter()
        size = 1 if cfg.exact else cfg.batch_size
        order = sorted(requests, key=lambda request: len(request.ids))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            missing = [request for request in batch if request.key not in done]
            if not missing:
                continue
            # Those that are there are sampled with the rest: what is in a batch decides the last bits of a log-prob.
            answers = sample(
                model,
                [request.ids for request in batch],
                [request.seed for request in batch],
                max_new_tokens=job.limit,
                temperature=cfg.temperature,
                top_p=cfg.top_p,
                top_k=cfg.top_k,
                eos_ids=job.stop_ids,
                pad_id=job.subject.tokenizer.pad_token_id,
                batch_size=size,
                with_logprobs=True,
            )
            with deferred_signals():
                for request, answer in zip(batch, answers, strict=True):
                    if request.key not in done:
                        record(request, answer)
        return {"start_seconds": loaded - began, "generate_seconds": time.perf_counter() - loaded}

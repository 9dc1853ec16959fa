"""Stands in for vLLM where only the process around it is tested: an engine that answers with its prompt backwards.

What goes wrong is in FAKE_VLLM: `start`, `die-N` (after N answers), `ids` (it is given other ids), `slow`, `eos-N` (it has
a stop id of its own, as vLLM has that of a configuration's class, unless told to `ignore_eos`).
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

FAULT = os.environ.get("FAKE_VLLM", "")


class EngineArgs(SimpleNamespace):
    pass


class SamplingParams(SimpleNamespace):
    pass


class LLMEngine:
    def __init__(self, args: EngineArgs) -> None:
        print(f"engine settings {sorted(vars(args).items())}")
        self.waiting: list[tuple[str, list[int], SamplingParams]] = []
        self.output_processor = SimpleNamespace(request_states={})
        self.finished = 0

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        if FAULT == "start":
            raise ValueError("1 validation error for ModelConfig\n  head size 16 is not supported")
        return cls(args)

    def add_request(self, name: str, prompt: dict[str, Any], params: SamplingParams, lora_request: Any = None) -> str:
        ids = prompt["prompt_token_ids"]
        if FAULT == "ids":
            ids = [ids[0], *ids]
        self.waiting.append((name, ids, params))
        own = f"{name}-internal"
        self.output_processor.request_states[own] = SimpleNamespace(prompt_token_ids=ids)
        return own

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        if FAULT.startswith("die-") and self.finished == int(FAULT[4:]):
            print("a last word", file=sys.stderr, flush=True)
            os._exit(7)
        if FAULT == "slow" and self.finished:
            time.sleep(0.2)
        name, ids, params = self.waiting.pop()  # the last one first: order means nothing
        self.finished += 1
        if getattr(params, "logprobs", None):
            top = {token: SimpleNamespace(logprob=-1.0 - (7 * token + len(ids)) % 5) for token in range(20)}
            first = SimpleNamespace(token_ids=[0], finish_reason="length", logprobs=[top], cumulative_logprob=-1.0)
            return [SimpleNamespace(finished=True, request_id=name, prompt_token_ids=ids, outputs=[first])]
        new = ids[::-1][: params.max_tokens]
        if FAULT.startswith("eos-") and not params.ignore_eos and (own := int(FAULT[4:])) in new:
            new = new[: new.index(own)]
        ended = len(new) < params.max_tokens
        first = SimpleNamespace(
            token_ids=[*new, params.stop_token_ids[0]] if ended else new,
            finish_reason="stop" if ended else "length",
            logprobs=None,
            cumulative_logprob=-0.5 * (len(new) + ended),
        )
        return [SimpleNamespace(finished=True, request_id=name, prompt_token_ids=ids, outputs=[first])]

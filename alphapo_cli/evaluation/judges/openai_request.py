"""The request that an OpenAI-compatible endpoint gets for one judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphapo_cli.evaluation.judges.prompt import Message
from alphapo_cli.evaluation.schema import JudgeConfig


def payload(cfg: JudgeConfig, messages: Sequence[Message], top_logprobs: int) -> dict[str, Any]:
    """The body of one request; `cfg.extra_body` wins."""
    body: dict[str, Any] = {
        "model": cfg.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        cfg.token_limit_key: 1,
        "top_p": 1,
        "logprobs": True,
        "top_logprobs": top_logprobs,
    }
    if cfg.temperature is not None:
        body["temperature"] = cfg.temperature
    if cfg.chat_template_kwargs:
        body["chat_template_kwargs"] = cfg.chat_template_kwargs
    return {**body, **cfg.extra_body}

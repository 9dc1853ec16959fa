"""Judge engine for any OpenAI-compatible endpoint that writes its judgement as text."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from alphapo_cli.errors import say
from alphapo_cli.evaluation.arena_hard.replies import TextReply
from alphapo_cli.evaluation.arena_hard.schema import ArenaHardJudgeConfig
from alphapo_cli.evaluation.judges.judge import JudgingResult, Record, Reply
from alphapo_cli.evaluation.judges.openai import OpenAIEngine
from alphapo_cli.evaluation.judges.openai_response import NoVerdictError, refused, thinks, utf8
from alphapo_cli.evaluation.judges.openai_session import Session, budget, usd
from alphapo_cli.evaluation.judges.prompt import Message, estimate_tokens
from alphapo_cli.evaluation.judges.protocol import Ask

EXPECTED = 600  # tokens of a judgement, for the estimate before the first request; most are of 300 to 1000


class OpenAITextEngine(OpenAIEngine):
    """Queries `cfg.base_url` for a text of at most `cfg.max_tokens` tokens."""

    cfg: ArenaHardJudgeConfig

    def identity(self) -> dict[str, Any]:
        """See `JudgeEngine.identity`."""
        return {key: value for key, value in super().identity().items() if key != "top_logprobs"}

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """Check key, cost limit and base URL; print the number of requests, their expected and their largest price."""
        super().check(asks, spent)
        most = [self.at_most(ask) for ask in asks]
        known = [cost for cost in most if cost is not None]
        if len(known) == len(asks):
            say(
                f"at most {sum(known):.2f} USD, if every judgement took judge.max_tokens={self.cfg.max_tokens}",
                file=sys.stderr,
            )

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> JudgingResult:
        """See `JudgeEngine.ask`."""
        session = TextSession(
            self.cfg, self.base_url, self.headers(), self.clean, self.at_most, self.price, spent, record
        )
        return asyncio.run(session.run(asks))

    def estimate(self, ask: Ask) -> float | None:
        """Expected price in USD of one request; None if unknown."""
        return self.price(estimate_tokens(ask.messages), min(self.cfg.max_tokens, EXPECTED))

    def at_most(self, ask: Ask) -> float | None:
        """Price in USD of one request whose text is as long as it may be; None if unknown."""
        return self.price(estimate_tokens(ask.messages), self.cfg.max_tokens)


class TextSession(Session):
    """A session that asks for texts. A request starts only if its largest price fits under the cost limit."""

    cfg: ArenaHardJudgeConfig

    def _body(self, ask: Ask, top_logprobs: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
            self.cfg.token_limit_key: self.cfg.max_tokens,
        }
        if self.cfg.temperature is not None:
            body["temperature"] = self.cfg.temperature
        if self.cfg.chat_template_kwargs:
            body["chat_template_kwargs"] = self.cfg.chat_template_kwargs
        return {**body, **self.cfg.extra_body}

    def _reply(self, ask: Ask, body: Any, tokens: int | None, price: float | None, seconds: float) -> Reply:
        text, finish = read_text(body)
        if price is None:  # a server that does not count tokens
            price = self.price(estimate_tokens(ask.messages), estimate_tokens((Message("assistant", text),)))
        return TextReply((), tokens, price, seconds, text=text, finish=finish)

    async def _over_limit(self, cost: float) -> str | None:
        limit = self.cfg.max_cost
        # What is under way is reserved at its largest price, and mostly costs less: wait for it before giving up.
        while limit is not None and not self.stop.is_set() and self.spent + self.in_flight + cost > limit:
            if self.in_flight < 1e-12:  # round-off of sums and differences
                return (
                    f"--max-cost {limit:g} is reached: {budget(limit, self.spent)}, and the next judgement may cost "
                    f"{usd(cost)} (judge.max_tokens={self.cfg.max_tokens})"
                )
            await self._wait(0.02)
        return None


def read_text(body: Any) -> tuple[str, str | None]:
    """Read a server's answer.

    Args:
        body: the parsed answer.

    Returns:
        The text, and the reason why it ended.

    Raises:
        NoVerdictError: the judge refused, or thought until the token limit.
        ValueError: there is no text.
    """
    choice = body["choices"][0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError("an answer without a message")
    finish = choice.get("finish_reason")
    if refusal := refused(choice):
        raise NoVerdictError(f"the judge refused ({refusal})")
    content = message.get("content")
    if isinstance(content, list):  # parts, of which texts count
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, str) and content.strip():
        return utf8(content), utf8(finish) if isinstance(finish, str) else None
    if finish == "length" or thinks(message):
        raise NoVerdictError("the judge thought and wrote no answer (a larger judge.max_tokens, or less thinking)")
    raise ValueError("an answer without a text")

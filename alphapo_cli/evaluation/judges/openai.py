"""Judge engine for any OpenAI-compatible endpoint.

Plain HTTP instead of a client library, because a library hides retries, waiting and double payment. The key comes from
the environment, is sent in one header, and is removed from every text that a server returns.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from alphapo_cli.errors import UsageError, say
from alphapo_cli.evaluation.judges.http import client_settings, connection_hint
from alphapo_cli.evaluation.judges.judge import JudgingResult, Record
from alphapo_cli.evaluation.judges.openai_session import Session, budget, usd
from alphapo_cli.evaluation.judges.prompt import estimate_tokens
from alphapo_cli.evaluation.judges.protocol import Ask
from alphapo_cli.evaluation.judges.registry import check_key
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.generation.thinking import Thinking

PRICES = {"gpt-4-1106-preview": (10.0, 30.0)}  # USD for a million tokens in and out; AlpacaEval counts 10 for both
PREFLIGHT = 10.0  # seconds, timeout of the reachability check


class OpenAIEngine:
    """Queries `cfg.base_url` for one token and its top log-probs; `key`: None for a server without keys."""

    def __init__(self, cfg: JudgeConfig, key: str | None) -> None:
        self.cfg, self.key = cfg, key
        self.base_url = _checked_url(cfg.base_url)

    @classmethod
    def from_environment(cls, cfg: JudgeConfig) -> OpenAIEngine:
        """Build the engine with the key in the environment variable `cfg.api_key_env`; `check` reports a missing key.

        Args:
            cfg: the judge settings.

        Returns:
            The engine.

        Raises:
            UsageError: the base URL is unusable, or the key has characters that a header cannot hold.
        """
        key = os.environ.get(cfg.api_key_env, "").strip() if cfg.api_key_env else ""
        if not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
            raise UsageError(f"the key in ${cfg.api_key_env} holds characters that no key has; set it again")
        return cls(cfg, key or None)

    def identity(self) -> dict[str, Any]:
        """See `JudgeEngine.identity`."""
        own = ("chat_template_kwargs", "extra_body", "api_version")
        return {
            "base_url": self.base_url,
            "model": self.cfg.model,
            "temperature": self.cfg.temperature,
            "top_logprobs": self.cfg.top_logprobs,
            **{name: value for name in own if (value := getattr(self.cfg, name))},
        }

    def thinking(self) -> Thinking:
        """See `JudgeEngine.thinking`."""
        return Thinking()

    def check(self, asks: Sequence[Ask], spent: float) -> None:
        """Check key, cost limit and base URL; print the number of requests and their estimated price to stderr."""
        check_key(self.cfg)
        tokens = sum(estimate_tokens(ask.messages) for ask in asks)
        costs = [self.estimate(ask) for ask in asks]
        known = [cost for cost in costs if cost is not None]
        limit = self.cfg.max_cost
        self.check_price()
        expected = sum(known)
        if limit is not None and spent + expected > limit:
            already = f"{budget(limit, spent)}; " if spent else ""
            raise UsageError(
                f"--max-cost {limit:g}: {already}{len(asks)} requests to {self.cfg.model} cost about {usd(expected)}; "
                "raise the limit or evaluate fewer outputs"
            )
        self.reach()
        price = (
            f"about {usd(expected)}" if len(known) == len(asks) else "price unknown (judge.price_input, price_output)"
        )
        say(f"{len(asks):,} requests to {self.cfg.model}: about {tokens:,} tokens, {price}", file=sys.stderr)

    def check_price(self) -> None:
        """Check that a price is known if there is a cost limit.

        Raises:
            UsageError: judge.max_cost is set and no price is known.
        """
        if self.cfg.max_cost is not None and self.price(0, 0) is None:
            raise UsageError(
                f"--max-cost: no price is known for {self.cfg.model}; set judge.price_input and judge.price_output "
                "(USD for a million tokens)"
            )

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> JudgingResult:
        """See `JudgeEngine.ask`."""
        session = Session(self.cfg, self.base_url, self.headers(), self.clean, self.estimate, self.price, spent, record)
        return asyncio.run(session.run(asks))

    def headers(self) -> dict[str, str]:
        """HTTP headers with the key, empty without one."""
        if not self.key:
            return {}
        return {"api-key": self.key} if self.cfg.api_version else {"Authorization": f"Bearer {self.key}"}

    def clean(self, text: str) -> str:
        """`text` on one line, at most 160 characters, with the key removed."""
        if self.key:
            text = text.replace(self.key, "[key]")
        flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return flat if len(flat) <= 160 else flat[:157] + "..."

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """Price in USD of so many tokens; None if unknown."""
        default = PRICES.get(str(self.cfg.model), (None, None))
        price_in = default[0] if self.cfg.price_input is None else self.cfg.price_input
        price_out = default[1] if self.cfg.price_output is None else self.cfg.price_output
        return None if price_in is None or price_out is None else (tokens_in * price_in + tokens_out * price_out) / 1e6

    def estimate(self, ask: Ask) -> float | None:
        """Estimated price in USD of one request; None if unknown."""
        return self.price(estimate_tokens(ask.messages), 1)

    def reach(self) -> None:
        """Check that the endpoint can be reached and accepts the key.

        Raises:
            UsageError: the endpoint cannot be reached, or refuses the key.
        """
        url = f"{self.base_url}/models"
        try:
            answer = httpx.get(
                url, headers=self.headers(), timeout=min(self.cfg.timeout, PREFLIGHT), **client_settings(url)
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError) as error:
            reason = self.clean(str(error)) or type(error).__name__
            hint = connection_hint(url, error) or "; is it running?"
            raise UsageError(f"judge.base_url={self.base_url}: cannot be reached ({reason}){hint}") from error
        except httpx.HTTPError:
            return  # the server is up; it need not implement /models
        if answer.status_code == 401:
            raise UsageError(f"judge.base_url={self.base_url} refuses the key in ${self.cfg.api_key_env} (HTTP 401)")


def _checked_url(url: str | None) -> str:
    if not url:
        raise UsageError("--judge openai needs judge.base_url=URL, such as http://127.0.0.1:8000/v1")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        usable = usable and bool(httpx.URL(url).host)  # stricter than urlsplit: raises here rather than in a request
    except (ValueError, httpx.InvalidURL):
        shown = "" if any(mark in url for mark in "@?#") else f"={url}"  # it may contain a secret
        raise UsageError(f"judge.base_url{shown}: not a URL; write http://HOST:PORT/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        # Not shown: these parts are often secrets, and the URL is written to the manifest.
        raise UsageError("judge.base_url must hold no user, password or query; keys come from judge.api_key_env")
    if not usable:
        raise UsageError(f"judge.base_url={url}: not a URL; write http://HOST:PORT/v1")
    return url.rstrip("/")

"""What an OpenAI-compatible server's answer says: the first token's log-probs, when to try again, what went wrong."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import re
from typing import Any

import httpx

# Round-off of a probability of one, as some servers return it; anything above is no log-prob.
_ABOVE_ZERO = 1e-3


class NoVerdictError(ValueError):
    """A finished answer that cannot be used, and that another request would not mend."""


def first_token(body: Any) -> tuple[tuple[str, float], ...]:
    """Read the first token's alternatives.

    Args:
        body: the parsed answer of a server.

    Returns:
        (token, log-prob in nats), those of probability 0 left out.

    Raises:
        NoVerdictError: the judge refused, or thought without an answer.
        ValueError: log-probs are missing or malformed.
    """
    choice = body["choices"][0]
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        said = message.get("refusal") or "stopped by its content filter"
        raise NoVerdictError(f"the judge refused ({said})")
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        top = [(row["token"], row["logprob"]) for row in rows]
    except (KeyError, IndexError, TypeError) as error:
        if any(message.get(key) for key in ("reasoning_content", "reasoning", "thinking")):
            raise NoVerdictError(
                "the judge began to think and gave no log-probs of an answer (switch thinking off, by "
                "judge.chat_template_kwargs or judge.extra_body)"
            ) from error
        raise ValueError("an answer without log-probs (the endpoint must return top_logprobs)") from error
    kept = [(token, lp) for token, lp in top if lp is not None and lp != -math.inf]  # both mean probability 0
    numbers = all(isinstance(lp, int | float) and not isinstance(lp, bool) and math.isfinite(lp) for _, lp in kept)
    if not kept or not numbers or not all(isinstance(token, str) for token, _ in top):
        raise ValueError("an answer with broken log-probs")
    if any(lp > _ABOVE_ZERO for _, lp in kept):
        raise NoVerdictError(
            "an answer whose log-probs are above 0: the endpoint seems to send probabilities in their place"
        )
    return tuple((_utf8(token), float(lp)) for token, lp in kept)


def _utf8(token: str) -> str:
    """A token as it can be written: a server may send half of a character."""
    return token.encode("utf-8", "replace").decode()


def error_in(body: Any) -> tuple[int | None, str] | None:
    """Find the error that a server sent with HTTP 200.

    Args:
        body: the parsed answer.

    Returns:
        (its HTTP status or None, its message), or None where the answer has choices.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    inside = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
    codes = [str(inside.get(key)) for key in ("code", "status", "status_code")]
    status = next((int(code) for code in codes if code.isdigit() and 100 <= int(code) < 600), None)
    texts = [error, inside.get("message"), inside.get("detail"), inside.get("msg")]
    message = next((text for text in texts if isinstance(text, str) and text), None)
    return status, message or "an answer without choices"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header with seconds or a date; None for anything else. `now`: Unix time."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None


def error_message(answer: httpx.Response) -> str:
    """The server's error message, or its text. Not truncated: `clean` must see a key in full."""
    try:
        body = json.loads(answer.text)
    except (ValueError, RecursionError):
        return answer.text
    error = body.get("error", body) if isinstance(body, dict) else body
    detail = error.get("message") if isinstance(error, dict) else error
    return detail if isinstance(detail, str) and detail else json.dumps(error)


def smaller_limit(message: str, asked: int) -> int | None:
    """The number of top log-probs that a server allows, where its refusal of `asked` names one."""
    if "top_logprobs" not in message:
        return None
    numbers = [int(text) for text in re.findall(r"(?<![\d.])\d+(?![\d.])", message)]
    return max((n for n in numbers if 2 <= n < asked), default=None)


def remedy_for(message: str) -> str:
    """The setting that answers a server's refusal of a parameter, to be put behind its message."""
    if "max_completion_tokens" in message:
        return " (add judge.token_limit_key=max_completion_tokens)"
    if "temperature" in message and ("support" in message or "not allowed" in message):
        return " (add judge.temperature=null)"
    return ""

"""What an OpenAI-compatible server's answer says: the first token's log-probs, when to try again, what went wrong."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
from typing import Any

import httpx


def first_token(body: Any) -> tuple[tuple[str, float], ...]:
    """(token, log-prob in nats) of the first token's alternatives; ValueError for missing or malformed log-probs."""
    try:
        choice = body["choices"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("an answer without choices") from error
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        top = tuple((row["token"], row["logprob"]) for row in rows)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("an answer without log-probs (the endpoint must return top_logprobs)") from error
    numbers = all(isinstance(lp, int | float) and not isinstance(lp, bool) and math.isfinite(lp) for _, lp in top)
    if not top or not numbers or not all(isinstance(token, str) for token, _ in top):
        raise ValueError("an answer with broken log-probs")
    return tuple((token, float(lp)) for token, lp in top)


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
    return detail if isinstance(detail, str) else json.dumps(error)

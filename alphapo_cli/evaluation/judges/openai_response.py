"""What an OpenAI-compatible server's answer says: the first token's log-probs, when to try again, what went wrong."""

from __future__ import annotations

import contextlib
import email.utils
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alphapo_cli.data.thoughts import split_thoughts

# Round-off of a probability of one, as some servers return it; anything above is no log-prob.
_ABOVE_ZERO = 1e-3
# "try again in 1h2m3.5s", "retry in 34.07s", "retry after 86 seconds", "wait 2 minutes", "try again in 250ms".
_WAIT = re.compile(
    r"(?:(?:try again|retry)(?: in| after)|wait(?: for)?) +(?=\d)(?:(\d+) ?h(?:ours?)?(?![a-z]) ?)?"
    r"(?:(\d+) ?m(?:in(?:ute)?s?)?(?![a-z]))?(?: ?(\d+(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?\b)?(?: ?(\d+) ?ms)?",
    re.IGNORECASE,
)
# How servers call an answer that a filter stopped: OpenAI and Azure, Anthropic, Google, Zhipu.
_REFUSED = {
    "content_filter", "refusal", "safety", "prohibited_content", "blocklist", "recitation", "spii", "sensitive",
}  # fmt: skip
_NEEDED = "the endpoint must return top_logprobs: take another, or --protocol arena_hard, whose judges write texts"
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")


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
    if refusal := refused(choice):
        raise NoVerdictError(f"the judge refused ({refusal})")
    try:
        top = _alternatives(choice["logprobs"])
    except (KeyError, IndexError, TypeError) as error:
        if thinks(message):
            raise NoVerdictError(
                "the judge began to think and gave no log-probs of an answer (switch thinking off, by "
                "judge.chat_template_kwargs or judge.extra_body)"
            ) from error
        raise ValueError(f"an answer without log-probs ({_NEEDED})") from error
    if not top:
        raise ValueError(f"an answer without log-probs but of its own token ({_NEEDED})")
    kept = [(token, _number(lp)) for token, lp in top if lp is not None and lp != -math.inf]  # both: probability 0
    numbers = [(token, lp) for token, lp in kept if lp is not None]
    if not kept or len(numbers) < len(kept) or not all(isinstance(token, str) for token, _ in top):
        raise ValueError(f"an answer with broken log-probs ({_broken(top)})")
    if any(lp > _ABOVE_ZERO for _, lp in numbers):
        raise NoVerdictError(
            "an answer whose log-probs are above 0: the endpoint seems to send probabilities in their place"
        )
    if all(utf8(token) != token for token, _ in numbers):
        raise ValueError("an answer whose tokens are no text")
    return tuple((utf8(token), lp) for token, lp in numbers)


def refused(choice: Mapping[str, Any]) -> str | None:
    """The words of a refusal in a choice; None where there is none."""
    message = choice.get("message")
    said = message.get("refusal") if isinstance(message, dict) else None
    stopped = str(choice.get("finish_reason")).lower() in _REFUSED
    return str(said) if said else "stopped by its content filter" if stopped else None


def thinks(message: Mapping[str, Any]) -> bool:
    """Whether a message holds a thought, in a field of its own or in its content."""
    content = message.get("content")
    if isinstance(content, list):
        return any(isinstance(part, dict) and "thinking" in str(part.get("type")) for part in content)
    in_text = isinstance(content, str) and split_thoughts(content).thoughts > 0
    return in_text or any(message.get(key) for key in _THOUGHTS)


def _alternatives(logprobs: Any) -> list[tuple[Any, Any]]:
    """(token, log-prob) of the first token; empty where only its own is given, and without any a KeyError or its like."""
    if "content" in logprobs:
        rows = logprobs["content"][0].get("top_logprobs")
    else:  # the older form: one object, token -> log-prob, for each place
        rows = logprobs["top_logprobs"][0]
    if not rows:
        return []
    return [*rows.items()] if isinstance(rows, dict) else [(row["token"], row["logprob"]) for row in rows]


def _broken(top: Sequence[tuple[Any, Any]]) -> str:
    """What is wrong with the alternatives of a first token, in words."""
    for token, lp in top:
        if not isinstance(token, str):
            return f"a token is {str(token)[:20]}, not text"
        if lp is not None and lp != -math.inf and _number(lp) is None:
            shown = repr(lp) if isinstance(lp, str) else str(lp) if isinstance(lp, float) else type(lp).__name__
            return f"that of {utf8(token)[:20]!r} is {shown[:20]}"
    return "none is above minus infinity"


def _number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def utf8(text: str) -> str:
    """A text as it can be written: a server may send half of a character."""
    return text.encode("utf-8", "replace").decode()


def retry_after(headers: Mapping[str, str], message: str, now: float) -> float | None:
    """Find out how long a server wants to be left alone.

    Args:
        headers: of its answer; Retry-After has seconds or a date, retry-after-ms (Azure) milliseconds.
        message: its words, which may say "try again in 1m2.5s" or "retry after 86 seconds".
        now: Unix time.

    Returns:
        Seconds; None where it does not say, or says something else.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) / unit
            if math.isfinite(seconds):
                return max(0.0, seconds)
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    found = _WAIT.search(message)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds_text, milliseconds = found.groups()
    total = float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(seconds_text or 0)
    return total + float(milliseconds or 0) / 1000


def smaller_limit(message: str, asked: int) -> int | None:
    """The number of top log-probs that a server allows, where its refusal of `asked` names one."""
    if not re.search(
        r"log_?prob", message, re.IGNORECASE
    ):  # vLLM: "Requested sample logprobs of 20, ... max allowed: 5"
        return None
    numbers = [int(text) for text in re.findall(r"(?<![A-Za-z]-)(?<![\w.])\d+(?![\d.])", message)]
    return max((n for n in numbers if 2 <= n < asked), default=None)

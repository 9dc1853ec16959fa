"""How a request to an endpoint can fail, and what to do about it.

Retry      network, 408, 409, 425, 429, 5xx; fewer attempts after a timeout or an answer without log-probs, which may have
           cost money
Permanent  the request itself is refused (too long, filtered): it fails, the others continue
Fatal      no request can succeed (key, model, address, money): nothing more is sent
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from alphapo_cli.evaluation.judges.judge import Unusable
from alphapo_cli.evaluation.judges.openai_errors import ServerError
from alphapo_cli.evaluation.judges.openai_response import retry_after
from alphapo_cli.evaluation.schema import JudgeConfig

RETRIED = {408, 409, 425, 429}
# Not 403: moderating endpoints return it for a single flagged prompt.
FATAL = {401, 402, 404, 405, 407, 410, 501}
_QUOTA = re.compile(r"insufficient.?quota|exceeded your current quota|billing|credit|out of funds|payment", re.I)
_RATE = re.compile(r"rate.?limit|retry|try again|per (?:second|minute|hour|day)|too many", re.I)
_LONG = re.compile(r"context|too (?:long|large|many tokens)|maximum.{0,20}length|max_model_len", re.I)
# How servers refuse a field's name.
_UNKNOWN = "not supported|unsupported|not permitted|not allowed|unknown|unrecogni[sz]ed|unexpected|extra"
_LIMIT = "max_(?:completion_)?tokens"
_ADDRESS = "judge.base_url ends in /v1 for most servers"


class Retry(Exception):
    """The request may succeed later.

    `after`: seconds of the server's Retry-After; `paid`: the useless answer, if one was charged; `costly`: the server
    may charge for the failed attempt.
    """

    def __init__(
        self, reason: str, after: float | None = None, paid: Unusable | None = None, costly: bool = False
    ) -> None:
        super().__init__(reason)
        self.after, self.paid, self.costly = after, paid, costly or paid is not None


class Permanent(Exception):
    """This request cannot succeed. `paid`: the useless answer, if one was charged."""

    def __init__(self, reason: str, paid: Unusable | None = None) -> None:
        super().__init__(reason)
        self.paid = paid


class Fatal(Exception):
    """No request can succeed."""


def failure_of(
    error: ServerError, headers: Mapping[str, str], now: float, clean: Callable[[str], str], cfg: JudgeConfig
) -> Exception:
    """What follows from a server's error.

    Args:
        error: what it says.
        headers: of its answer.
        now: Unix time.
        clean: makes a server's text fit to be shown.
        cfg: the judge's settings: what is set already is no remedy.

    Returns:
        A Retry, Permanent or Fatal, with the server's words and what to type.
    """
    status = error.acts_as
    moved = f" to {headers['location']}" if 300 <= status < 400 and "location" in headers else ""
    reason = clean(f"HTTP {error.status}{moved}" + (f": {error.message}" if error.message else ""))
    poor = _without_money(error, headers)
    reason += _REMEDIES[402] if poor else _remedy(error, cfg)
    if status in FATAL or 300 <= status < 400 or poor:
        return Fatal(reason)
    if status in RETRIED or status >= 500 or status < 300:
        return Retry(reason, retry_after(headers, error.message, now), costly=error.costly)
    return Permanent(reason)


def _without_money(error: ServerError, headers: Mapping[str, str]) -> bool:
    """Whether a 429 speaks of an account without money, which waiting does not mend, rather than of a rate."""
    if error.acts_as != 429:
        return False
    if "insufficient_quota" in error.kind.lower():
        return True
    waits = "retry-after" in headers or "retry-after-ms" in headers or _RATE.search(error.message) is not None
    return _QUOTA.search(error.message) is not None and not waits


def _remedy(error: ServerError, cfg: JudgeConfig) -> str:
    """The setting that answers a server's error, to be put behind its message."""
    message, status = error.message, error.acts_as
    limit = _limit_key(message)
    if limit is not None and limit != cfg.token_limit_key:
        return f" (add judge.token_limit_key={limit})"
    if (
        cfg.temperature is not None
        and "temperature" in message
        and ("support" in message or "not allowed" in message or "deprecated" in message)
    ):
        return " (add judge.temperature=null)"
    if "logprobs" in message and status in (400, 403, 422):
        return " (this judge gives no such log-probs: take another, or --protocol arena_hard, whose judges write texts)"
    if error.kind == "page" and status in (401, 403):
        return f" (a gateway before the API refuses it: check judge.base_url; {_ADDRESS})"
    if error.kind == "page" and status < 300:
        return f" (the address is that of a site, not of an API: {_ADDRESS})"
    if error.kind == "stream":
        silent = cfg.extra_body.get("stream") is False
        return (
            " (it streams whatever it is asked: take another endpoint)"
            if silent
            else " (add judge.extra_body={stream:false})"
        )
    if status == 413 or (status in (400, 422) and _LONG.search(message)):
        return " (too long for this judge: take one with a longer context)"
    if status == 429 and not _QUOTA.search(f"{message} {error.kind}"):
        return " (a lower judge.concurrency asks less often)"
    key = cfg.api_key_env
    return _REMEDIES.get(status, "").format(key=f"${key}" if key else "no variable: judge.api_key_env=NAME")


def _limit_key(message: str) -> str | None:
    """The name of the token limit that a server asks for; None where it speaks of something else."""
    wanted = re.search(rf"\buse\W+({_LIMIT})", message, re.I)
    if wanted:
        return wanted[1].lower()
    refused = re.search(
        rf"(?:{_UNKNOWN})\W+(?:\w+\W+){{0,3}}?({_LIMIT})|({_LIMIT})\W+(?:\w+\W+){{0,3}}?(?:{_UNKNOWN})", message, re.I
    )
    if refused is None:
        return None
    return "max_tokens" if "max_completion_tokens" in refused[0].lower() else "max_completion_tokens"


_REMEDIES = {
    401: " (the key is read from {key})",
    402: " (the account has to be paid)",
    403: " (the prompt was filtered, or the key may not use judge.model)",
    404: f" (check judge.model and judge.base_url; {_ADDRESS})",
    405: f" (no such route: {_ADDRESS})",
    407: " (the proxy asks for a password: http://USER:PASSWORD@HOST in its variable)",
    410: " (check judge.model)",
    501: f" (no such route: {_ADDRESS})",
    **dict.fromkeys((301, 302, 303, 307, 308), " (write the new address in judge.base_url)"),
}

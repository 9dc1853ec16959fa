"""Passwords, access tokens and API keys of a configuration, which are kept from the tracking service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_WORDS = frozenset({"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials"})
# "token" and "key" name a secret only at the end of a name (hf_token, api_key), not in max_new_tokens and not for a
# tokenizer's special tokens.
_SECRET_ENDINGS = frozenset({"token", "key", "apikey"})
_SPECIAL_TOKENS = frozenset({"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "stop", "per"})
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    r"|[a-z]+://[^/\s:@]+:[^/\s@]+@"
)


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without the entries, at any depth, whose name or value looks like a secret."""
    return {key: _clean(value) for key, value in config.items() if not _is_secret(key, value)}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value if not _is_secret("", item)]
    return value


def _is_secret(key: str, value: Any) -> bool:
    if isinstance(value, str) and _SECRET_VALUE.search(value):
        return True
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", key)]
    if not words or isinstance(value, bool | int | float) or value is None:
        return False  # a number (tokens per batch, a switch) is not a secret
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    return words[-1] in _SECRET_ENDINGS and not (len(words) > 1 and words[-2] in _SPECIAL_TOKENS)

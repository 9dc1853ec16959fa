"""Checks before W&B is opened: the mode, whether online tracking can work, and entries that must not be sent."""

from __future__ import annotations

import netrc
import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from alphapo_cli.config.schema import TrackingConfig

_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_TRUE = ("1", "true", "yes", "on")
_REACH_TIMEOUT = 5.0  # seconds

_SECRET_WORDS = frozenset({"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials"})
# "token" and "key" name a secret only at the end of a name (hf_token, api_key), not in max_new_tokens and not for a
# tokenizer's special tokens.
_SECRET_ENDINGS = frozenset({"token", "key", "apikey"})
_SPECIAL_TOKENS = frozenset({"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "stop", "per"})
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    r"|[a-z]+://[^/\s:@]+:[^/\s@]+@"
)


def tracking_mode(cfg: TrackingConfig) -> str:
    """The mode (online, offline or disabled) from WANDB_MODE, else WANDB_DISABLED, else cfg.mode."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower()
    if wanted in _MODES:
        return _MODES[wanted]
    if wanted:
        warn(f"WANDB_MODE='{wanted}' is none of {', '.join(_MODES)}; tracking.mode={cfg.mode} is used")
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in _TRUE:
        return "disabled"
    return _MODES[cfg.mode]


def warn(line: str) -> None:
    """Print one line to stderr."""
    print(f"alphapo: {line}", file=sys.stderr, flush=True)


def online_obstacle(wandb: Any) -> str | None:
    """Why W&B cannot be used online from this machine. Takes at most about 5 s.

    wandb.init would prompt for a missing key on a terminal, and wait for an unreachable server for minutes.

    Args:
        wandb: the module.

    Returns:
        The reason in a few words, or None where online tracking can work.
    """
    settings = wandb.setup().settings
    url = str(settings.base_url)
    if not _has_key(settings, url):
        return "no API key (type 'wandb login', or set WANDB_API_KEY)"
    if not _answers(url):
        return f"{urlsplit(url).hostname} does not answer"
    return None


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


def _has_key(settings: Any, url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(urlsplit(url).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _answers(url: str) -> bool:
    """Whether any HTTP answer comes from `url`, through the proxies of the environment."""
    answered = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(url, timeout=_REACH_TIMEOUT).close()
        except urllib.error.HTTPError:
            answered.set()  # an error page is an answer
        except urllib.error.URLError as error:
            # wandb has certificates of its own; a certificate that Python rejects shows that the server answers.
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                answered.set()
        except Exception:
            return
        else:
            answered.set()

    # A thread, because the timeout does not cover the DNS lookup.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_REACH_TIMEOUT)
    return answered.is_set()

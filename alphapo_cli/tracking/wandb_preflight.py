"""Checks before W&B is opened: the mode, and whether online tracking can work."""

from __future__ import annotations

import netrc
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from alphapo_cli.config.schema import TrackingConfig
from alphapo_cli.printing import say

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


def tracking_mode(cfg: TrackingConfig) -> str:
    """Decide on the mode: WANDB_MODE, else WANDB_DISABLED, else cfg.mode.

    A configured `disabled` wins over all: it can only prevent an upload.

    Returns:
        online, offline or disabled.
    """
    if cfg.mode == "disabled":
        return "disabled"
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
    say(f"alphapo: {line}", file=sys.stderr, flush=True)


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

"""Checks before W&B is opened: the mode, and whether online tracking can work.

W&B itself refuses WANDB_MODE=OFFLINE, " offline" and an empty one, as it does every value that it does not know, and a run
would silently be without it. Here capitals and spaces are forgiven, because what is meant is plain; anything else is refused
before training.
"""

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
from alphapo_cli.errors import UsageError, first_line, say

_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_VARIABLE = "WANDB_MODE"
# Checked or set here, or such that W&B takes any value.
_HARMLESS = {
    _VARIABLE, "WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_DIR",
    "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
}  # fmt: skip
_TRUE = ("1", "true", "yes", "on")
_REACH_TIMEOUT = 5.0  # seconds


def check_tracking(cfg: TrackingConfig) -> None:
    """Check, before training, that W&B's variables have values that W&B takes.

    Args:
        cfg: the configuration of tracking; with mode=disabled they do not count.

    Raises:
        UsageError: one has another value.
    """
    wanted = os.environ.get(_VARIABLE, "").strip()
    if cfg.mode != "disabled" and wanted and wanted.lower() not in _MODES:
        raise UsageError(
            f"{_VARIABLE}={wanted[:40]}: W&B knows {', '.join(_MODES)}; unset the variable, or type tracking.mode=disabled"
        )
    if tracking_mode(cfg) != "disabled":
        _check_variables()


def import_wandb() -> Any:
    """The module, imported so that it prints nothing of its own."""
    # All are read at import. The first disables wandb's usage reports, whose retries delay the exit of a process by
    # 13 s where there is no network; the second its banner and log lines, between which ours would be lost.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ["WANDB_SILENT"] = "true"
    spell_mode()
    import wandb

    return wandb


def _check_variables() -> None:
    """Refuse what W&B's own variables hold and W&B would refuse when the run is opened.

    Raises:
        UsageError: the first of them, by its name; its value may be a secret.
    """
    given = {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith("WANDB_") and name not in _HARMLESS
    }
    if not given:  # W&B takes a second to import
        return
    try:
        settings = import_wandb().Settings
    except ImportError:
        return
    for name, value in given.items():
        try:
            settings().update_from_env_vars({name: value})
        except Exception as error:  # pydantic's, W&B's own, ...
            raise UsageError(
                f"{name}: {reason(error)}; correct the variable or unset it, or type tracking.mode=disabled"
            ) from error


def tracking_mode(cfg: TrackingConfig) -> str:
    """Decide on the mode: WANDB_MODE, else WANDB_DISABLED, else cfg.mode.

    A configured `disabled` wins over all: it can only prevent an upload.

    Returns:
        online, offline or disabled.
    """
    if cfg.mode == "disabled":
        return "disabled"
    wanted = os.environ.get(_VARIABLE, "").strip().lower()
    if wanted in _MODES:
        return _MODES[wanted]
    if wanted:  # on a machine of a scheduler, where the command line was not checked
        warn(f"{_VARIABLE}='{wanted}' is none of {', '.join(_MODES)}; tracking.mode={cfg.mode} is used")
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in _TRUE:
        return "disabled"
    return _MODES[cfg.mode]


def spell_mode() -> None:
    """Put WANDB_MODE into the spelling that W&B takes, or away where W&B knows no such mode."""
    wanted = os.environ.pop(_VARIABLE, "").strip().lower()
    if wanted in _MODES:
        os.environ[_VARIABLE] = wanted


def reason(error: Exception) -> str:
    """What an error of W&B says, in one line: of a setting that it refuses, which and why."""
    listed = getattr(error, "errors", None)
    if isinstance(error, ValueError) and callable(listed):  # pydantic's, whose first line is only a number of errors
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in listed())
    return first_line(error)


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

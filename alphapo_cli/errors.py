"""Every error that a user may meet, and the exit code it ends with.

    AlphapoError            exit 1   a run that failed
    ├── UsageError          exit 2   wrong usage, configuration or input; nothing was started
    │   └── ConfigError     exit 2   an override or a YAML file
    └── Interrupted         exit 130 Ctrl-C or SIGTERM; the same line continues

A message is one line: what is wrong, where, and what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AlphapoError(Exception):
    """A run failed."""

    exit_code = 1


class UsageError(AlphapoError):
    """Wrong usage, configuration or input. Raised before any work starts."""

    exit_code = 2


class ConfigError(UsageError):
    """An override or a configuration file that does not fit the schema."""


class Interrupted(AlphapoError):
    """Stopped by the user or the system; the same command line continues."""

    exit_code = 130


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `choices`, or an empty string when none is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def missing_extra(package: str, extra: str) -> UsageError:
    """The one line for a package that an optional part needs and that is not installed."""
    return UsageError(f"{package} is not installed: type pip install 'alphapo[{extra}]'")

"""Every error that a user may meet, and the exit code it ends with.

    AlphapoError            exit 1   a run that failed
    ├── UsageError          exit 2   wrong usage, configuration or input; nothing was started
    │   └── ConfigError     exit 2   an override or a YAML file
    └── Interrupted         exit 130 Ctrl-C or SIGTERM; the same line continues

A message is one line: what is wrong, where, and what to type next.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator


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


_REFUSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    text = str(error).strip()
    if "weights_only" in text or "Weights only load failed" in text:
        # Not torch's words, which advise to switch off the check: then the file's code runs.
        return "a file that torch cannot read as tensors alone; save the weights as safetensors"
    return text.splitlines()[0] if text else type(error).__name__


def in_words(error: BaseException) -> str:
    """One line for any error."""
    if isinstance(error, AlphapoError):
        return " ".join(str(error).split())
    first = first_line(error) if str(error).strip() else ""
    return refusal(error) or f"{type(error).__name__}: {first}"


def refusal(error: BaseException) -> str | None:
    """The line for a disk that is full or takes no writes, whatever a library made of it; None for other errors."""
    for link in _chain(error):
        for number in _REFUSING:
            words = os.strerror(number)
            if (isinstance(link, OSError) and link.errno == number) or words in str(link):
                place = f" ({link.filename})" if isinstance(link, OSError) and link.filename else ""
                return f"{words}{place}: make room or choose another place, then type the same line"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it. torch's writer of files, for one, buries the system's reason."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

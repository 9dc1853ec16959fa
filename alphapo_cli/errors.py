"""What a user is told: every error with the exit code that it ends with, and text of others on its way to a terminal.

    AlphapoError            exit 1   a run that failed
    ├── UsageError          exit 2   wrong usage, configuration or input; nothing was started
    │   └── ConfigError     exit 2   an override or a YAML file
    └── Interrupted         exit 130 Ctrl-C or SIGTERM; the same line continues

A message is one line: what is wrong, where, and what to type next.

Names of columns and files, values of data, and what a server answers may hold escape sequences, which move the cursor,
set the title or hide a line, and marks that turn the direction of writing around: `say` shows what would command the
terminal, and does not send it.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

# C0 and C1 controls, DEL, line separators, marks of direction (Unicode TR9), and halves of surrogate pairs.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


def visible(text: object) -> str:
    r"""Escape what a terminal would obey, as Python writes it: ESC becomes `\x1b`, a newline `\n`."""
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], str(text))


def is_plain(text: str) -> bool:
    """Whether `visible` leaves the text as it is."""
    return _ACTIVE.search(text) is None


_TYPED = ("next: ", "W&B kept offline")  # lines with a command to copy
_NARROW = 20  # columns: a terminal that tells no width has 0


_said = {"stderr": 0.0}


def last_said() -> float:
    """When `say` wrote a line to stderr last, by the monotonic clock."""
    return _said["stderr"]


def say(text: object, file: TextIO | None = None, *, flush: bool = False) -> None:
    """Print one line: `visible(text)`. A terminal shows it broken between words, but for what is to be copied."""
    line = visible(text)
    if file is sys.stderr:
        _said["stderr"] = time.monotonic()
    print(_between_words(line, sys.stdout if file is None else file), file=file, flush=flush)


def _between_words(line: str, file: TextIO) -> str:
    """Break a sentence that is longer than a terminal is wide, which would cut its words; a pipe gets one line."""
    if line.startswith(_TYPED) or "\n" in line or not file.isatty():
        return line
    try:
        width = os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return line
    if width < _NARROW or len(line) <= width:
        return line
    import textwrap

    # A path that is longer than a line stays whole, to be copied.
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line, width, subsequent_indent=indent, replace_whitespace=False, break_long_words=False, break_on_hyphens=False
    )

"""JSON that others wrote, read so that every fault is named by its line and none ends in a traceback.

Lines end at a line feed and nowhere else: str.splitlines, and text streams with universal newlines, also cut at
characters that a JSON string may hold as they are (U+2028, U+0085). A byte-order mark at the beginning is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from alphapo_cli.errors import UsageError

_BOM = b"\xef\xbb\xbf"
# Integers of so many digits fit a float64; longer ones become one, as 1e400 already does. Python refuses to read them
# at all from 4301 digits on.
_DIGITS = 308


def lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line of a binary stream that is not blank; `name` is for messages.

    Raises:
        UsageError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield number, _decode(line, f"{name}: line {number}")


def whole(content: bytes, name: str) -> str:
    """A whole file as text.

    Raises:
        UsageError: it is not UTF-8, naming the line.
    """
    try:
        return content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.removeprefix(_BOM).count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}: line {number}: not UTF-8 text; save it as UTF-8") from error


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text; save it as UTF-8") from error


def parse(text: str, where: str) -> Any:
    """One line's value. Integers beyond float64 come back as infinities.

    Raises:
        UsageError: broken JSON, with `where` and the column, or nested deeper than can be read.
    """
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise UsageError(f"{where}: JSON nested too deeply to be read") from error


def loads(text: str) -> Any:
    """json.loads without Python's limit on digits. Raises json.JSONDecodeError and RecursionError."""
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)

"""JSON that others wrote, read so that every fault is named by its line and none ends in a traceback.

Lines end at a line feed and nowhere else: str.splitlines, and text streams with universal newlines, also cut at
characters that a JSON string may hold as they are (U+2028, U+0085). A byte-order mark at the beginning is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError

_BOM = b"\xef\xbb\xbf"
# Integers of so many digits fit a float64; longer ones become one, as 1e400 already does. Python refuses to read them
# at all from 4301 digits on.
_DIGITS = 308
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|\n')


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
        raise UsageError(
            f"{where}: broken JSON ({error.msg} at column {error.colno}); each line holds one JSON object"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{where}: JSON nested too deeply to be read") from error


def loads(text: str) -> Any:
    """json.loads without Python's limit on digits. Raises json.JSONDecodeError and RecursionError."""
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def deepest_line(text: str) -> int:
    """The number of the line on which brackets are nested deepest: where to look when `loads` gave up."""
    line, depth, deepest, found = 1, 0, 0, 1
    for token in _BRACKETS.findall(text):
        if token == "\n":
            line += 1
        elif token in ("[", "{"):
            depth += 1
            if depth > deepest:
                deepest, found = depth, line
        elif token in ("]", "}"):
            depth -= 1
    return found


def half_character(text: str) -> int | None:
    """The place of the first lone surrogate (JSON's "\\ud800"), which no tokenizer takes and no file can hold."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def parsed_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that a file of ours holds; None where it is damaged."""
    try:
        loaded = json.loads(content)
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of ours; None where there is none, or it cannot be read."""
    try:
        return parsed_object(path.read_bytes())
    except OSError:
        return None

"""Reading of users' JSON and JSON Lines: every error is a UsageError that names the line.

Lines end at a line feed and nowhere else: str.splitlines, and text streams with universal newlines, also split at
characters that a JSON string may hold unescaped (U+2028, U+0085). A byte-order mark at the beginning is skipped.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError

_BOM = b"\xef\xbb\xbf"
# The number of digits up to which an integer stays one; a longer one becomes a float64, as 1e400 already does. Python
# refuses to read integers of 4301 digits or more.
_DIGITS = 308
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|\n')


def lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Decode the lines of a binary stream.

    Args:
        stream: the lines, as bytes.
        name: what messages call the stream.

    Yields:
        (number from 1, text) of every line that is not blank.

    Raises:
        UsageError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield number, _decode(line, f"{name}: line {number}")


def bounded(stream: gzip.GzipFile | io.BufferedReader, name: str, most: int) -> Iterator[bytes]:
    """Lines of a binary stream that fit into memory: a file without line feeds, or one that unpacks to gigabytes, is refused.

    Args:
        stream: an open file.
        name: what messages call the stream.
        most: bytes that a line may have.

    Yields:
        The lines.

    Raises:
        UsageError: a line is longer.
    """
    number = 0
    while line := stream.readline(most + 1):
        number += 1
        if len(line) > most:
            raise UsageError(
                f"{name}: line {number} is longer than {most / 2**20:g} MiB (data.max_row_mb); is this JSON Lines?"
            )
        yield line


def whole(content: bytes, name: str) -> str:
    """Decode a whole file.

    Args:
        content: the file's bytes.
        name: what messages call the file.

    Returns:
        Its text, without a byte-order mark.

    Raises:
        UsageError: the content is not UTF-8; the message has the line.
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
    """Parse the JSON of one line.

    Args:
        text: the line.
        where: file and line, for messages.

    Returns:
        Its value; integers beyond float64 become infinities.

    Raises:
        UsageError: the JSON is broken, has a key twice, or is nested deeper than Python can read.
    """
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}: broken JSON ({error.msg} at column {error.colno}); each line holds one JSON object"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{where}: JSON nested too deeply to be read") from error
    except DuplicateKey as error:
        raise UsageError(f"{where}: {error}") from error


class DuplicateKey(ValueError):
    """A JSON object has a key twice: readers disagree on which value counts."""


def loads(text: str) -> Any:
    """Call json.loads without Python's limit on digits; raises json.JSONDecodeError, RecursionError or DuplicateKey."""
    return json.loads(text, parse_int=_integer, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise DuplicateKey(f"the key {twice!r} stands twice in one JSON object; leave one of them")
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def deepest_line(text: str) -> int:
    """The number of the line on which brackets are nested deepest, for the message about a RecursionError."""
    line, depth, deepest, at = 1, 0, 0, 1
    for token in _BRACKETS.findall(text):
        if token == "\n":
            line += 1
        elif token in ("[", "{"):
            depth += 1
            if depth > deepest:
                deepest, at = depth, line
        elif token in ("]", "}"):
            depth -= 1
    return at


def half_character(text: str) -> int | None:
    """The index of the first lone surrogate (U+D800 to U+DFFF), which UTF-8 cannot encode; None without one."""
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

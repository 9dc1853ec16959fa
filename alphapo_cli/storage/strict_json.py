"""Reading of users' JSON and JSON Lines: every error is a UsageError that names the line.

Lines end at a line feed and nowhere else: str.splitlines, and text streams with universal newlines, also split at
characters that a JSON string may hold unescaped (U+2028, U+0085). A byte-order mark at the beginning is skipped.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, say

LARGEST = 256 << 20  # bytes of a file of ours that is one JSON object, or settings
SMALL, RATIO = 64 << 20, 100  # of what a packed file may unpack to; text packs to a tenth, rarely to a thirtieth
_EMPTY = 4_000_000  # empty lines in a row that are read
_OFTEN = 1 << 30  # bytes after which a long reading is mentioned
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


def open_binary(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a file for reading; one whose name ends in .gz is unpacked as it is read."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def longest_unpacked(path: Path) -> int | None:
    """Bytes that a packed file may unpack to: `RATIO` times its size, and no less than `SMALL`; None for other files."""
    return SMALL + RATIO * path.stat().st_size if path.name.lower().endswith(".gz") else None


def read_whole(path: Path, most: int) -> bytes:
    """Read a file that is one text.

    Args:
        path: the file; .gz is unpacked.
        most: bytes that its text may have.

    Returns:
        The text's bytes.

    Raises:
        UsageError: it has more.
    """
    limit = min(most, longest_unpacked(path) or most)
    with open_binary(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UsageError(
            f"{path}: holds more than {limit >> 20} MiB, which are read as one text; write it as JSON Lines (.jsonl)"
        )
    return content


def bounded(
    stream: gzip.GzipFile | io.BufferedReader, name: str, most: int, whole: int | None = None
) -> Iterator[bytes]:
    """Lines of a binary stream that fit into memory: a file without line feeds, or one that unpacks to gigabytes, is refused.

    Args:
        stream: an open file.
        name: what messages call the stream.
        most: bytes that a line may have, and empty lines in a row.
        whole: bytes that all lines may have; None: any number.

    Yields:
        The lines.

    Raises:
        UsageError: a line is longer, there are too many empty ones in a row, or all lines together are longer.
    """
    number, blank, row, total, said = 0, 0, 0, 0, _OFTEN
    while line := stream.readline(most + 1):
        number += 1
        total += len(line)
        blank, row = (0, number) if line.strip() else (blank + len(line), row)
        if blank > most and len(line) <= most:
            raise UsageError(
                f"{name}: more than {most / 2**20:g} MiB of empty lines up to line {number} (data.max_row_mb); is this JSON "
                "Lines?"
            )
        if number - row > _EMPTY:  # reading more of them takes minutes
            raise UsageError(f"{name}: more than {_EMPTY:,} empty lines up to line {number}; is this JSON Lines?")
        if whole is not None and total > whole:
            raise UsageError(
                f"{name}: unpacks to more than {whole >> 20} MiB up to line {number}, {RATIO} times its size, as no data "
                "does; unpack it yourself if it is meant"
            )
        if total > said:
            said += _OFTEN
            say(f"{name}: {total >> 20:,} MiB read ...", file=sys.stderr, flush=True)
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
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of ours; None where there is none, or it cannot be read."""
    try:
        return parsed_object(read_file(path))
    except OSError:
        return None


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """Read a small file of a directory that may be anybody's.

    Args:
        path: the file.
        most: bytes that it may have.

    Returns:
        Its content.

    Raises:
        OSError: it cannot be read, it is larger, or it is no regular file: a pipe would wait for ever, and a device such
            as /dev/zero never ends.
    """
    with open(path, "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MiB", str(path))
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)

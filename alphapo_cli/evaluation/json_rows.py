"""Rows of a JSON file, plain or .gz, with errors that name file, line and row."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.storage import checksums, strict_json

WHOLE = 2 << 30  # bytes, unpacked, of a file, which is read as one text


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: the file, which is decompressed if its name ends in .gz.

    Returns:
        Its text, without a byte order mark.

    Raises:
        UsageError: the file is unreadable, too large, not UTF-8, or empty.
    """
    try:
        text = strict_json.read_whole(path, WHOLE).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read ({reason})") from error
    if not text.strip():
        raise UsageError(f"{path} is empty")
    return text


def read_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    """Read the rows of a JSON list, or of JSON Lines.

    Args:
        path: the file; .gz is decompressed.

    Returns:
        The rows, at least one.

    Raises:
        UsageError: the file cannot be read, is not JSON, is no list of objects, or is ours and has changed since.
    """
    checksums.check_beside(path)
    text = read_text(path)
    try:
        loaded = strict_json.loads(text)
    except json.JSONDecodeError as error:
        lines = _json_lines(text, path)
        if lines is not None:
            return lines
        raise UsageError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except strict_json.DuplicateKey as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not JSON that can be read (nested too deeply)") from error
    if isinstance(loaded, dict) and Path(path.name.removesuffix(".gz")).suffix == ".jsonl":
        return [loaded]  # JSON Lines with one line
    if not isinstance(loaded, list):
        raise UsageError(f"{path}: a JSON list of rows was expected, not {type(loaded).__name__}")
    if not loaded:
        raise UsageError(f"{path} is empty: a list without rows")
    for number, row in enumerate(loaded, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}, row {number}: a JSON object was expected, not {type(row).__name__}")
    return loaded


def _json_lines(text: str, path: Path) -> list[dict[str, Any]] | None:
    """The rows of a text with one JSON object a line; None for any other."""
    try:
        rows = [strict_json.loads(line) for line in text.split("\n") if line.strip()]
    except strict_json.DuplicateKey as error:
        raise UsageError(f"{path}: {error}") from error
    except (ValueError, RecursionError):
        return None
    return rows if rows and all(isinstance(row, dict) for row in rows) else None

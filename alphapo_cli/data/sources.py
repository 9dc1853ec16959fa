"""Rows of local files, each with its location for error messages; `folders` finds the files, `hub` reads from the hub.

Files are read with the standard library and pyarrow rather than through `datasets`: a broken line is then reported by
its number, nothing is copied into a cache, and the network is not used.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.storage import strict_json
from alphapo_cli.storage.checksums import check_beside

WHOLE = 2 << 30  # bytes, unpacked, of a file that is read as one text
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet", ".arrow")


class CsvText(str):
    """A CSV field: text that may stand for a number, since CSV has no types."""

    __slots__ = ()


@dataclass(frozen=True)
class Row:
    """One source row: values by column, number from 1, and location for messages ("pairs.jsonl: line 3")."""

    values: dict[str, Any]
    number: int
    where: str


def read_files(files: Iterable[Path], limit: int | None = None, max_row_mb: float = 64) -> list[Row]:
    """Read the rows of data files.

    Args:
        files: the files, in order.
        limit: rows at most; None: all.
        max_row_mb: MiB that a line of JSON Lines and a field of CSV may have.

    Returns:
        Rows of all files, one file after the other.

    Raises:
        UsageError: a file is unreadable or not a table; the message names file and line.
    """
    rows = itertools.chain.from_iterable(_read_file(file, int(max_row_mb * 2**20)) for file in files)
    return list(itertools.islice(rows, limit))


def suffix_of(path: Path) -> str | None:
    """The suffix of a file that alphapo reads; None for other files."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _read_file(path: Path, most: int) -> Iterator[Row]:
    suffix = suffix_of(path)
    check_beside(path)
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
        elif suffix == ".arrow":
            yield from _read_arrow(path)
        elif suffix == ".csv":
            yield from _read_csv(path, most)
        elif suffix in (".json", ".json.gz"):
            yield from _read_json(path)
        else:
            with strict_json.open_binary(path) as stream:
                limit = strict_json.longest_unpacked(path)
                yield from _read_lines(path, strict_json.bounded(stream, str(path), most, limit))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file ({error}); copy it again") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_lines(path: Path, stream: Iterable[bytes]) -> Iterator[Row]:
    for number, line in strict_json.lines(stream, str(path)):
        where = f"{path}: line {number}"
        yield Row(_require_object(strict_json.parse(line, where), where), number, where)


def _read_json(path: Path) -> Iterator[Row]:
    content = strict_json.read_whole(path, WHOLE)
    text = strict_json.whole(content, str(path))
    try:
        values = strict_json.loads(text)
    except json.JSONDecodeError as error:
        # Many ".json" files are JSON Lines.
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_lines(path, io.BytesIO(content))
            return
        raise UsageError(f"{path}: line {error.lineno}: broken JSON ({error.msg} at column {error.colno})") from error
    except strict_json.DuplicateKey as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: line {strict_json.deepest_line(text)}: JSON nested too deeply to be read") from error
    if isinstance(values, dict):
        # {"data": [...]}, or a single row.
        inner = list(values.values())
        values = inner[0] if len(inner) == 1 and isinstance(inner[0], list) else [values]
    if not isinstance(values, list):
        raise UsageError(f"{path}: holds a JSON {_kind(values)}; a list of objects is expected")
    for number, value in enumerate(values, 1):
        where = f"{path}: row {number}"
        yield Row(_require_object(value, where), number, where)


def _read_csv(path: Path, most: int) -> Iterator[Row]:
    csv.field_size_limit(min(most, 2**31 - 1))
    text = strict_json.whole(strict_json.read_whole(path, WHOLE), str(path))
    # Strict: otherwise an unclosed quote silently takes all rows after it into its field.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for name, times in Counter(reader.fieldnames or ()).items():
            if name and times > 1:  # DictReader would silently keep the last one
                raise UsageError(f"{path}: its header names '{name}' {times} times; rename all but one")
        for number, values in enumerate(reader, 1):
            where = f"{path}: row {number}"
            if None in values:
                raise UsageError(f"{where}: more fields than the header names; quote fields that hold commas")
            fields = {key: CsvText(value) for key, value in values.items() if value is not None}
            yield Row(fields, number, where)
    except csv.Error as error:
        line = reader.line_num + 1  # after the last row read: where the broken one begins
        if "field limit" in str(error):
            raise UsageError(
                f"{path}: line {line}: a field is longer than {most / 2**20:g} MiB (data.max_row_mb); is a quote missing?"
            ) from error
        raise UsageError(
            f"{path}: line {line}: broken CSV ({error}); close every quote, and double those within a field"
        ) from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _arrow_rows(path, file.iter_batches(batch_size=1024))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({first_line(error)})") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    """Rows of an Arrow file of either kind: a stream, as `datasets` writes it, or a file with random access."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                reader = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                file = pyarrow.ipc.open_file(source)
                yield from _arrow_rows(path, (file.get_batch(i) for i in range(file.num_record_batches)))
            else:
                yield from _arrow_rows(path, reader)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a readable Arrow file ({first_line(error)})") from error


def _arrow_rows(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row({name: without_nulls(value) for name, value in values.items()}, number, f"{path}: row {number}")


def without_nulls(value: Any) -> Any:
    """An Arrow value without the null entries of its objects: every object of a column has the keys of all of them."""
    if isinstance(value, dict):
        # Messages that were stored as one object of lists, as `datasets` has done.
        if {"role", "content"} <= value.keys() and all(isinstance(item, list) for item in value.values()):
            rows = zip(*value.values(), strict=False)
            return [without_nulls(dict(zip(value, row, strict=True))) for row in rows]
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _require_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: holds a JSON {_kind(value)}; an object with prompt, chosen, rejected is expected")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")

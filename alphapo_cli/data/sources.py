"""Rows from local files and from the hub, each with the place that an error message names.

Files are read with the standard library and pyarrow rather than through `datasets`: a broken line is then reported by
its number, nothing is copied into a cache, and no network is touched.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, first_line, nearest
from alphapo_cli.storage import strict_json

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
REACH_SECONDS = 5.0


class CsvText(str):
    """A CSV field: text that may stand for a number, since CSV has no types."""

    __slots__ = ()


@dataclass(frozen=True)
class Row:
    """One source row: its values, its number from 1, and where it is ("pairs.jsonl: line 3")."""

    values: dict[str, Any]
    number: int
    where: str


def read_files(path: str, limit: int | None = None) -> list[Row]:
    """The rows of a file, of every readable file in a folder, or of a glob, in name order; the first `limit`.

    Raises UsageError, naming file and line, for what is missing, unreadable or not a table.
    """
    rows = itertools.chain.from_iterable(_read_file(file) for file in find_files(path))
    return list(itertools.islice(rows, limit))


def find_files(path: str) -> list[Path]:
    """The files that `path` names. Raises UsageError with the nearest existing name when there is none."""
    if not path:  # as data.path=$UNSET gives; to Path it is the current folder
        raise UsageError("data.path (or data.eval_path) is empty: type data.path=FILE")
    try:
        return _find_files(path)
    except (OSError, RuntimeError) as error:  # no right to look, a name too long; ~ of nobody
        raise UsageError(
            f"{path}: cannot be looked at ({getattr(error, 'strerror', None) or error}); correct it"
        ) from error


def _find_files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_dir():
        found = sorted(file for file in given.iterdir() if file.is_file() and _suffix(file))
        if not found:
            raise UsageError(f"{path}: no data file in this folder; alphapo reads {', '.join(SUFFIXES)}")
        return found
    if given.is_file():
        if not _suffix(given):
            raise UsageError(f"{path}: unknown file type; alphapo reads {', '.join(SUFFIXES)}")
        return [given]
    if glob.has_magic(path):
        found = sorted(Path(name) for name in glob.glob(str(given)) if Path(name).is_file() and _suffix(Path(name)))
        if found:
            return found
        raise UsageError(f"{path}: no data file matches; alphapo reads {', '.join(SUFFIXES)}")
    folder = given.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: no such file; the folder {folder} does not exist either")
    hint = nearest(given.name, [file.name for file in folder.iterdir()])
    raise UsageError(f"{path}: no such file{hint or '; set data.path to a file of ' + ', '.join(SUFFIXES)}")


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _read_file(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
        elif suffix == ".csv":
            yield from _read_csv(path)
        elif suffix in (".json", ".json.gz"):
            yield from _read_json(path)
        else:
            with _open(path) as stream:
                yield from _read_lines(path, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file ({error}); copy it again") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _read_lines(path: Path, stream: Iterable[bytes]) -> Iterator[Row]:
    for number, line in strict_json.lines(stream, str(path)):
        where = f"{path}: line {number}"
        yield Row(_object(strict_json.parse(line, where), where), number, where)


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        content = stream.read()
    text = strict_json.whole(content, str(path))
    try:
        values = strict_json.loads(text)
    except json.JSONDecodeError as error:
        # Many ".json" files hold one object a line.
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_lines(path, io.BytesIO(content))
            return
        raise UsageError(f"{path}: line {error.lineno}: broken JSON ({error.msg} at column {error.colno})") from error
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
        yield Row(_object(value, where), number, where)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = strict_json.whole(path.read_bytes(), str(path))
    # Strict: else a quote that is never closed takes all rows behind it into its field, without a word.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for name, times in Counter(reader.fieldnames or ()).items():
            if name and times > 1:  # the last one would be read, without a word
                raise UsageError(f"{path}: its header names '{name}' {times} times; rename all but one")
        for number, values in enumerate(reader, 1):
            where = f"{path}: row {number}"
            if None in values:
                raise UsageError(f"{where}: more fields than the header names; quote fields that hold commas")
            fields = {key: CsvText(value) for key, value in values.items() if value is not None}
            yield Row(fields, number, where)
    except csv.Error as error:
        line = reader.line_num + 1  # behind the last row that was read: where the broken one begins
        raise UsageError(
            f"{path}: line {line}: broken CSV ({error}); close every quote, and double those within a field"
        ) from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, number, f"{path}: row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise UsageError(f"{path}: not a readable Parquet file ({reason})") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: holds a JSON {_kind(value)}; an object with prompt, chosen, rejected is expected")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def read_hub(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    limit: int | None = None,
    data_dir: str | None = None,
) -> list[Row]:
    """The first `limit` rows of a hub data set's split, from the network or the local cache.

    OWNER/DATASET/FILE is one file of a data set, read as it is: for those that come with a loading script, which
    `datasets` does not run any more (split and config are then not looked at).

    Raises UsageError when the data set, its configuration or its split does not exist or cannot be reached. A machine
    without network is told so in seconds: `datasets` itself retries for half a minute.
    """
    if name.count("/") > 1:
        return read_files(str(_hub_file(name, revision)), limit)
    import datasets

    local = "type data.path=FILE to read a local copy"
    with _offline_when_unreachable(name, revision) as problem:
        try:
            rows = datasets.load_dataset(name, config, data_dir=data_dir, split=split, revision=revision)
        except (ConnectionError, TimeoutError, datasets.exceptions.DatasetNotFoundError) as error:
            raise UsageError(
                f"hub data set '{name}': {problem or _first_line(error)}, and it is not in the cache; {local}"
            ) from error
        except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise UsageError(
                f"hub data set '{name}' (data.config={config or 'null'}, data.split={split}): {_first_line(error)}"
            ) from error
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return [Row(dict(values), number, f"{name}: row {number}") for number, values in enumerate(rows, 1)]


def _hub_file(name: str, revision: str | None) -> Path:
    """The local copy of OWNER/DATASET/FILE. Raises UsageError when it cannot be had."""
    import huggingface_hub

    owner, dataset, file = name.split("/", 2)
    with _offline_when_unreachable(f"{owner}/{dataset}", revision) as problem:
        try:
            return Path(
                huggingface_hub.hf_hub_download(f"{owner}/{dataset}", file, repo_type="dataset", revision=revision)
            )
        except (OSError, ValueError) as error:  # the hub's own errors are among them
            raise UsageError(
                f"hub file '{name}': {problem or _first_line(error)}, and it is not in the cache; "
                "type data.path=FILE to read a local copy"
            ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextlib.contextmanager
def _offline_when_unreachable(name: str, revision: str | None) -> Iterator[str | None]:
    """Asks the hub once; when it does not answer, `datasets` looks only into its cache while the block runs."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE or Path(name).exists():
        yield "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else None
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=REACH_SECONDS)
    except errors.GatedRepoError:
        problem: str | None = "access is gated (ask for it on its page, then hf auth login)"
    except errors.RevisionNotFoundError:
        problem = f"no revision '{revision}'"
    except errors.RepositoryNotFoundError:
        problem = "no such data set on the hub, or no access to it (hf auth login)"
    except (errors.HfHubHTTPError, ValueError) as error:
        problem = _first_line(error)
    except Exception as error:  # whatever the HTTP library of the day raises without a network
        problem = f"the hub cannot be reached ({_first_line(error)})"
    else:
        problem = None
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or problem is not None
    try:
        yield problem
    finally:
        constants.HF_HUB_OFFLINE = before

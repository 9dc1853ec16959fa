"""Atomic writing of files and directories, and values converted to strict JSON.

Files are written under a temporary name in their own directory, flushed to disk and renamed, and the directory is
flushed after that: a reader sees the old content or the new one and never a part, also after a power failure. Files
that grow line by line are in `jsonl`.

Whether a directory can be written is tested before any work, by writing there: permission bits say nothing about root,
nor about a file system that takes no files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, is_plain

# Prefixes of the temporary files that a kill may leave in a directory before its first file, manifest.json, exists.
UNBEGUN = (".manifest.json.", ".alphapo-")


@contextlib.contextmanager
def usable(path: str | os.PathLike[str], fix: str) -> Iterator[None]:
    """Turn an OSError within the block into a UsageError.

    Args:
        path: the file or directory that the message names.
        fix: what the user should do, the end of the message ("choose another --out").

    Raises:
        UsageError: an OSError was raised within the block.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be used ({error.strerror or error}); {fix}") from error


def check_folder(path: str | os.PathLike[str], fix: str) -> None:
    """Check that files can be written into the directory `path`, or that it can be made. Leaves nothing behind.

    Args:
        path: the directory, which need not exist.
        fix: what the user should do, the end of the message.

    Raises:
        UsageError: `path` or a parent of it is not a directory, cannot be written, or has control characters in its name.
    """
    _check_name(path, fix)
    with usable(path, fix):
        place = Path(path).absolute()
        existing = next(p for p in (place, *place.parents) if os.path.lexists(p))
        if not existing.is_dir():
            raise UsageError(f"{path}: {existing} is not a directory; {fix}")
        for part in place.relative_to(existing).parts:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(existing / part)  # refuses a name that is too long
        _try_to_write(existing)


def check_file(path: str, option: str) -> None:
    """Check that the file `path` can be written. Leaves nothing behind.

    Args:
        path: the file, which need not exist.
        option: the command-line option that named it, for the message.

    Raises:
        UsageError: `path` is empty, a directory, or has control characters; its folder does not exist, or cannot be written.
    """
    if not path:
        raise UsageError(f"{option} '': the name is empty; name a file")
    _check_name(path, "name another file")
    target = Path(path)
    try:
        if target.is_dir():
            raise UsageError(f"{option} {path}: is a directory; name a file in it")
        folder = target.absolute().parent
        if not folder.is_dir():
            raise UsageError(f"{option} {path}: no such folder {folder}")
        if is_stream(target):
            if not os.access(target, os.W_OK):  # not opened: the reader of a pipe would see it end
                raise UsageError(f"{option} {path}: cannot be written; name another file")
            return
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # refuses a name that is too long
        _try_to_write(folder)
    except OSError as error:
        raise UsageError(
            f"{option} {path}: cannot be written ({error.strerror or error}); name another file"
        ) from error


def _check_name(path: str | os.PathLike[str], fix: str) -> None:
    if not is_plain(os.fspath(path)):
        raise UsageError(f"{os.fspath(path)}: a newline or a control character in the name; {fix}")


def is_stream(path: Path) -> bool:
    """Whether `path` is a device or a pipe, which must not be replaced by a file (a link in /dev may lead to one)."""
    return path.exists() and (path.is_relative_to("/dev") or not (path.is_file() or path.is_dir()))


def _try_to_write(folder: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=".alphapo-", dir=folder)
    os.close(handle)
    os.unlink(name)


def jsonable(value: Any) -> Any:
    """Convert `value` to JSON types only; NaN and infinities, which JSON lacks, become None.

    Args:
        value: a scalar, mapping (keys become text), list, tuple, set (sorted), dataclass, path, or anything with
            `.item()` or `.tolist()` (scalars and arrays of numpy and torch), nested.

    Returns:
        None, a bool, int, float or str, or a list or dict of such.

    Raises:
        TypeError: a value of another type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((jsonable(item) for item in value), key=repr)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if callable(getattr(value, "tolist", None)):
        return jsonable(value.tolist())
    if callable(getattr(value, "item", None)):
        return jsonable(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the file at `path` by `data` (text as UTF-8) atomically; makes missing parent directories.

    The new file is on disk under its name when this returns, where the file system can flush directories.

    Raises:
        OSError: the file cannot be written; the old file is then untouched and no temporary file is left.
    """
    target = Path(path)
    make_folder(target.parent)
    # Not tempfile: its files are readable by their owner only, and a run directory is often shared by a group.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(target.parent)


def write_json(path: str | os.PathLike[str], value: Any, *, sort_keys: bool = False) -> None:
    """Write `json_text(value)` to `path` atomically."""
    write_atomic(path, json_text(value, sort_keys=sort_keys))


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """`jsonable(value)` as JSON, indented by two and ended by a newline."""
    return json.dumps(jsonable(value), indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n"


@contextlib.contextmanager
def shared_directory(target: Path, *, private: bool = False) -> Iterator[Path]:
    """A directory to fill that several processes may make alike, such as an entry of a cache.

    It takes the name `target` once the block has ended and all of it is on disk; a process that is second discards its
    own. What killed processes left is removed.

    Args:
        target: the directory's final name; its parents are made.
        private: whether its files hold prompts or answers, which other users must not read, whatever the umask.

    Yields:
        The directory, `.<name>.<random>` beside `target`.

    Raises:
        OSError: the disk refuses; `target` is as it was, and nothing is left beside it.
    """
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    make_folder(target.parent)
    handle = _locked_directory(beside, 0o700 if private else 0o777)
    try:
        yield beside
        for file in beside.rglob("*") if private else ():
            file.chmod(0o700 if file.is_dir() else 0o600)
        sync_tree(beside)
        try:
            os.rename(beside, target)
        except OSError:
            if not target.is_dir():
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        os.close(handle)
        _remove_abandoned(target)


def _locked_directory(path: Path, mode: int) -> int:
    """Make the directory `path`, locked until the returned handle is closed, as it is when its process is killed."""
    first = path.with_name(f".new{path.name}")  # under a name that no process looks for until it is locked
    # Not mkdtemp, whose directories only their owner may read: caches of models are often shared by a group.
    first.mkdir(mode)
    handle = os.open(first, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(first, path)
    return handle


def _remove_abandoned(target: Path) -> None:
    """Remove the directories that killed processes left beside a shared `target`."""
    for path in target.parent.glob(f".{target.name}.*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def discard(folder: Path) -> None:
    """Remove a directory that other processes may be making anew: its name is free from one moment to the next."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a directory and its missing parents, and flush their names to disk, where the file system can."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a directory, and the directory."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk; of a directory, where the file system can.

    Raises:
        OSError: the disk refuses a file, which some file systems say only now.
    """
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

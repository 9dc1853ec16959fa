"""Sizes and SHA-256 digests of stored files, recorded when they are written and compared when they are read.

A disk or a copy that changes one bit goes unnoticed by every format that is used here (safetensors, .npz, pickles of
torch): other numbers come out of it, and nothing fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.storage.atomic import jsonable, write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.strict_json import read_object

NAME = "checksums.json"  # of the files beside it
FINAL = (
    "summary.json",
    "results.json",
    "metrics.json",
)  # the last file of a directory; its "files" are the checksums of the others
Recorded = Mapping[str, Any]  # name of a file -> {"size": bytes, "sha256": hex}


def of_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256, in hex, of a file; raises OSError."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"size": stream.tell(), "sha256": found}


def of_text(text: str) -> dict[str, Any]:
    """What `of_file` returns of a file that holds `text` as UTF-8."""
    content = text.encode("utf-8")
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def of_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`of_file` of the named files in `folder`, and of all files in named directories; those that exist.

    Args:
        folder: the folder that the names are relative to.
        names: files and directories.

    Returns:
        Path relative to `folder`, with forward slashes -> size and digest, sorted.

    Raises:
        OSError: a file cannot be read.
    """
    files = (f for name in names for f in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name]))
    return {f.relative_to(folder).as_posix(): of_file(f) for f in sorted(files) if f.is_file()}


def damaged(
    folder: Path, recorded: Recorded, *, content: bool = True, read: Callable[[Path], dict[str, Any]] = of_file
) -> dict[str, str]:
    """Compare files with what was recorded of them.

    Args:
        folder: the folder that the names are relative to.
        recorded: as `of_files` returns it.
        content: whether to read the files; False compares sizes, in a millisecond.
        read: how; by default `of_file`.

    Returns:
        Name -> what is wrong with it: missing, a size, other content, or why it cannot be read; empty if all is well.
    """
    found = {}
    for name, was in recorded.items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != was["size"]:
                found[name] = f"{size} bytes instead of {was['size']}"
            elif content and read(file) != {"size": size, "sha256": was["sha256"]}:
                found[name] = "its content has changed"
        except FileNotFoundError:
            found[name] = "is missing"
        except OSError as error:
            found[name] = f"cannot be read ({error.strerror or error})"
        except (KeyError, TypeError, ValueError):  # ValueError: a name that no file can have
            found[name] = "its recorded checksum is damaged"
    return found


def check_beside(file: Path) -> None:
    """Compare a file with what was recorded of it when a directory of ours was finished.

    Args:
        file: any file; one of which neither its folder nor the folder above has a record is believed.

    Raises:
        UsageError: it is not as it was written.
    """
    for folder in (file.parent, file.parent.parent):
        for name in FINAL:
            stored = read_object(folder / name) or {}
            recorded = stored.get("files") if "checksum" in stored and intact(stored) is not None else None  # ours
            was = recorded.get(file.relative_to(folder).as_posix()) if isinstance(recorded, dict) else None
            found = {} if was is None else damaged(folder, {file.relative_to(folder).as_posix(): was})
            if found:
                raise UsageError(
                    f"{folder} has changed since {name} was written ({described(found)}); put it back from a copy, make it "
                    "again with --replace, or copy the file elsewhere to take it as it is"
                )


def described(found: Mapping[str, str]) -> str:
    """What `damaged` found, as `weights: its content has changed; 2 more`."""
    first = "; ".join(f"{name}: {what}" for name, what in list(found.items())[:2])
    return first + (f"; {len(found) - 2} more" if len(found) > 2 else "")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum of its content to a JSON object.

    Its "state" is left out, because one that is no known state already counts as unfinished, and so is its "cost", which
    differs between equal runs.

    Args:
        value: anything that `jsonable` takes.

    Returns:
        The object, and "checksum".
    """
    plain = {str(k): jsonable(v) for k, v in value.items() if k != "checksum"}
    return {**plain, "checksum": _of_object(plain)}


def intact(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """A JSON object that `sealed` has made; None where it has changed since. One without a checksum is believed."""
    if value is None or "checksum" not in value:
        return value
    plain = {k: v for k, v in value.items() if k != "checksum"}
    try:
        return value if _of_object(plain) == value["checksum"] else None
    except (ValueError, RecursionError):  # half a character, or nested deeper than anything of ours
        return None


def _of_object(value: Mapping[str, Any]) -> str:
    return digest({k: v for k, v in value.items() if k not in ("state", "cost")})


def write(folder: Path) -> None:
    """Record size and digest of every file in `folder` in its checksums.json.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    write_json(folder / NAME, {"files": {k: v for k, v in of_files(folder, ["."]).items() if k != NAME}})


def whole(folder: Path) -> bool:
    """Whether `folder` has a checksums.json that every file in it agrees with."""
    record = read_object(folder / NAME)
    files = (record or {}).get("files")
    return isinstance(files, dict) and bool(files) and not damaged(folder, files)

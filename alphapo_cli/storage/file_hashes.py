"""SHA-256 of files, kept in the cache where reading them again would take long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.strict_json import read_object

CACHED_FROM = 64 << 20  # bytes from which a file's hash is kept in the cache


def cached_of_file(file: Path, cache: Path) -> dict[str, Any]:
    """`checksums.of_file`, which reads a large file once: a model takes minutes, and the same command asks again.

    Args:
        file: the file.
        cache: directory of cached hashes, stored under a file's path, size, modification time and inode.

    Returns:
        Size in bytes and SHA-256 in hex.

    Raises:
        OSError: the file cannot be read, or the cache not be written.
    """
    status = file.stat()
    if status.st_size < CACHED_FROM:
        return checksums.of_file(file)
    key = digest([str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino])
    kept = cache / "hashes" / f"{key}.json"
    stored = read_object(kept) or {}
    if "checksum" in stored and checksums.intact(stored) is not None:
        return {name: stored[name] for name in ("size", "sha256")}
    found = checksums.of_file(file)
    write_json(kept, checksums.sealed(found))
    return found

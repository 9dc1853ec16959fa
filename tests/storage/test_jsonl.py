"""A log that grows line by line: whole lines whatever the disk does, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.storage.jsonl import InUse, LineLog, check_free


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_that_does_not_fit_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The system writes the part that fits and calls it a success; room may be there again for the next line."""
    path = tmp_path / "log.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LineLog(path, "alphapo test") as log:
        log.add({"text": "a" * 100})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
        try:
            with pytest.raises(OSError, match="large"):
                log.add({"text": "b" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.add({"text": "c" * 100})
    assert [row["text"][0] for row in rows(path)] == ["a", "c"]


def test_another_writer_is_found_where_only_writers_get_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS: flock(2) asks for a file that was opened for writing."""
    lock = fcntl.flock

    def as_on_nfs(file: Any, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    path = tmp_path / "log.jsonl"
    with LineLog(path, "alphapo test"), pytest.raises(InUse, match="another alphapo test"):
        check_free(path, "alphapo test")
    check_free(path, "alphapo test")

"""What a checkpoint knows of the metrics written up to its step, so that a resumed run has no holes in its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.storage.atomic import sync, write_atomic
from alphapo_cli.storage.jsonl import json_line, read_jsonl

FILES = ("metrics.jsonl", "probe.jsonl")


def taken(run: Path) -> dict[str, dict[str, Any]]:
    """Flush the files of metrics to disk and take their digests.

    Args:
        run: the run directory.

    Returns:
        Name -> {"rows": number of rows, "sha256": hex of all of them}, of those that exist.

    Raises:
        OSError: a file cannot be flushed or read.
    """
    found = {}
    for name in FILES:
        if (run / name).is_file():
            sync(run / name)
            content = (run / name).read_bytes()
            found[name] = {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def cut(run: Path, step: int, record: Mapping[str, Any]) -> None:
    """Remove the rows after a checkpoint.

    Args:
        run: the run directory.
        step: the checkpoint's step.
        record: what `taken` returned then; empty for a checkpoint of a version that did not call it.

    Raises:
        UsageError: rows up to the checkpoint are missing or have changed; nothing was removed.
    """
    before = {name: _rows_before(run / name, was) for name, was in record.items()}
    for name in FILES:
        if name in before:
            write_atomic(run / name, before[name])
        elif (run / name).is_file():
            kept = [row for row in read_jsonl(run / name) if row.get("step", 0) <= step and not record]
            write_atomic(run / name, "".join(json_line(row) for row in kept))


def _rows_before(file: Path, was: Mapping[str, Any]) -> bytes:
    content = file.read_bytes() if file.is_file() else b""
    rows = b"".join(line + b"\n" for line in content.split(b"\n")[:-1][: was["rows"]])
    if hashlib.sha256(rows).hexdigest() != was["sha256"]:
        raise UsageError(
            f"{file}: the {was['rows']} rows up to the last checkpoint are not those that were written; restore the file "
            "from a copy, or start over with --replace"
        )
    return rows

"""What a checkpoint knows of the metrics written up to its step, so that a resumed run has no holes in its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.storage.atomic import sync, write_atomic
from alphapo_cli.storage.jsonl import json_line, read_jsonl

FILES = ("metrics.jsonl", "probe.jsonl")


def taken(run: Path) -> dict[str, dict[str, Any]]:
    """Flush the files of metrics and sampled answers to disk and take their digests.

    Args:
        run: the run directory.

    Returns:
        Name -> {"rows": number of rows, "sha256": hex of all of them}, of those that exist.

    Raises:
        OSError: a file cannot be flushed or read.
    """
    found = {}
    for name in (*FILES, *(f"samples/{file.name}" for file in sorted(run.glob("samples/*.json")))):
        if (run / name).is_file():
            sync(run / name)
            content = (run / name).read_bytes()
            found[name] = {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def rows(file: Path) -> list[dict[str, Any]]:
    """Read a file of metrics.

    Args:
        file: metrics.jsonl or probe.jsonl.

    Returns:
        Its rows.

    Raises:
        AlphapoError: a line is not a JSON object with a step.
    """
    found = read_jsonl(file)
    for number, row in enumerate(found, start=1):
        if not isinstance(row.get("step"), int):
            raise AlphapoError(f"{file}: row {number} has no step; put the file back from a copy, or delete the line")
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
            kept = [row for row in rows(run / name) if row["step"] <= step and not record]
            write_atomic(run / name, "".join(json_line(row) for row in kept))


def _rows_before(file: Path, was: Mapping[str, Any]) -> bytes:
    content = file.read_bytes() if file.is_file() else b""
    kept = b"".join(line + b"\n" for line in content.split(b"\n")[:-1][: was["rows"]])
    if hashlib.sha256(kept).hexdigest() != was["sha256"]:
        raise UsageError(
            f"{file}: the {was['rows']} rows up to the last checkpoint are not those that were written; restore the file "
            "from a copy, or start over with --replace"
        )
    return kept

"""A reader of W&B's transaction log (`run-ID.wandb`), so that tests look at what was written, not at what was called.

The file is a 7-byte header and then blocks of 32 KiB. A block holds chunks: crc (4 bytes), length (2), type (1), all
little-endian, then that many bytes. Type 1 is a whole record, 2, 3 and 4 are the first, middle and last parts of one;
fewer than 7 bytes at a block's end are padding, and so are zeros. A record is a protobuf message of wandb.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32 * 1024
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """What one file holds. `history` is one row a step with "_step"; `exit_code` is None while the run is open."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read(path: Path, wait: float = 10.0) -> WandbFile:
    """Everything of the file at `path` that the tests look at.

    W&B's service writes the end of the file shortly after `finish` has returned (and before the process may exit), so
    this waits up to `wait` seconds for the exit record.
    """
    deadline = time.monotonic() + wait
    while True:
        found = _read(path.read_bytes())
        if found.exit_code is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def _read(content: bytes) -> WandbFile:
    from wandb.proto import wandb_internal_pb2

    found = WandbFile()
    for payload in _payloads(content):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.name, found.project = run.run_id, run.display_name, run.project
            found.group, found.job_type, found.tags = run.run_group, run.job_type, list(run.tags)
            found.config.update(_items(run.config.update))
        elif kind == "config":
            found.config.update(_items(record.config.update))
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary.update(_items(record.summary.update))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def live_files(run_dir: Path) -> list[Path]:
    """The .wandb files below `run_dir`/wandb that were not set aside."""
    return [path for path in sorted((run_dir / "wandb").rglob("*.wandb")) if "superseded" not in path.parts]


def _items(items: Any) -> dict[str, Any]:
    """The items as one mapping; ["picture", "path"] is a key inside a key, unlike "rewards/chosen"."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = [item.key] if item.key else item.nested_key
        level = found
        for key in outer:
            level = level.setdefault(key, {})
        level[last] = json.loads(item.value_json)
    return found


def _payloads(content: bytes) -> Iterator[bytes]:
    assert content.startswith(b":W&B") or not content, f"not a W&B file: {content[:_HEADER]!r}"
    parts: list[bytes] = []
    # The first block counts the header in.
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        at = _HEADER if start == 0 else 0
        while at + _CHUNK.size <= len(block):
            _, length, kind = _CHUNK.unpack_from(block, at)
            chunk = block[at + _CHUNK.size : at + _CHUNK.size + length]
            if kind == 0 or len(chunk) < length:
                break
            at += _CHUNK.size + length
            parts = [chunk] if kind in (_WHOLE, _FIRST) else [*parts, chunk]
            if kind in (_WHOLE, _LAST):
                yield b"".join(parts)
                parts = []

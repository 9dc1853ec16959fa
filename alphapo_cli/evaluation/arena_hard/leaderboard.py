"""leaderboard.csv with the public tool's columns: a model's row is replaced, all others stay unchanged."""

from __future__ import annotations

import contextlib
import csv
import datetime
import fcntl
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.leaderboard import read_table
from alphapo_cli.storage.atomic import check_file, write_atomic
from alphapo_cli.storage.csv_text import cell

COLUMNS = ("model", "score", "rating_q025", "rating_q975", "CI", "avg_tokens", "date")


def check(path: Path) -> None:
    """Check before any work that a row can be written.

    Args:
        path: the leaderboard, which need not exist.

    Raises:
        UsageError: the file cannot be written, or is no leaderboard of Arena-Hard.
    """
    check_file(str(path), "--leaderboard")
    _read(path)


def update(path: Path, model: str, results: Mapping[str, Any]) -> None:
    """Insert the row of `model` and sort by score. Safe for concurrent writers.

    rating_q025 and rating_q975 are the ends of `arena_hard/ci`, whatever statistics.confidence is.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        header, rows = _read(path)
        rows = [row for row in rows if row["model"] not in (model, cell(model))] + [_row(model, results)]
        rows.sort(key=_score, reverse=True)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, stream.getvalue())


def _row(model: str, results: Mapping[str, Any]) -> dict[str, str]:
    score, bounds, tokens = results["arena_hard/score"], results["arena_hard/ci"], results["avg_tokens"]
    low, high = bounds or (None, None)
    return {
        "model": cell(model),
        "score": f"{score:.2f}",
        "rating_q025": "" if low is None else f"{low:.2f}",
        "rating_q975": "" if high is None else f"{high:.2f}",
        "CI": "" if low is None or high is None else f"(-{score - low:.2f}, +{high - score:.2f})",
        "avg_tokens": "" if tokens is None else str(int(tokens)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(header, rows as text); the standard header without a file."""
    header, rows = read_table(path)
    if not header:
        return list(COLUMNS), []
    if not {"model", "score"} <= set(header) or any(None in row for row in rows):
        raise UsageError(f"{path} is no leaderboard of Arena-Hard (columns {', '.join(COLUMNS)})")
    return header + [name for name in COLUMNS if name not in header], rows


def _score(row: Mapping[str, str | None]) -> float:
    try:
        return float(row.get("score") or "-inf")
    except ValueError:
        return float("-inf")

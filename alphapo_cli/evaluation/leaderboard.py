"""leaderboard.csv with AlpacaEval's columns: a model's row is replaced, all others stay unchanged."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.storage.atomic import check_file, write_atomic
from alphapo_cli.storage.csv_text import cell

COLUMNS = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode",
           "avg_length", "length_controlled_winrate", "lc_standard_error")  # fmt: skip
MODE = "community"


def check(path: Path) -> None:
    """Check before any work that a row can be written.

    Args:
        path: the leaderboard, which need not exist.

    Raises:
        UsageError: the file cannot be written, or is not a leaderboard.
    """
    check_file(str(path), "--leaderboard")
    _read(path)


def update(path: Path, model: str, results: Mapping[str, Any]) -> None:
    """Insert the row of `model`, sort by length-controlled win rate, then win rate. Safe for concurrent writers."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        header, rows = _read(path)
        own = {"": cell(model), **{name: _cell(results.get(name)) for name in COLUMNS}, "mode": MODE}
        rows = [row for row in rows if row[""] not in (model, cell(model))] + [own]
        rows.sort(key=lambda row: (_order(row, "length_controlled_winrate"), _order(row, "win_rate")), reverse=True)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, stream.getvalue())


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(header, rows as text); the standard header without a file."""
    header, rows = read_table(path)
    if not header:
        return ["", *COLUMNS], []
    missing = [name for name in ("", "win_rate") if name not in header]
    if missing or any(None in row for row in rows):
        raise UsageError(
            f"{path} is not a leaderboard (an unnamed first column with the model, then {', '.join(COLUMNS[:3])}, ...)"
        )
    return header + [name for name in COLUMNS if name not in header], rows


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a leaderboard's CSV file.

    Args:
        path: the file, which need not exist.

    Returns:
        Its header and rows as text; both empty without a file or a header.

    Raises:
        UsageError: it cannot be read as CSV.
    """
    if not path.exists():
        return [], []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a leaderboard ({error})") from error
    return list(reader.fieldnames or []), rows


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _order(row: Mapping[str, str | None], column: str) -> float:
    try:
        return float(row.get(column) or "-inf")
    except ValueError:
        return float("-inf")

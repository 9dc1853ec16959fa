"""What others wrote is shown on the terminal and does not command it."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.errors import is_plain, say, visible
from alphapo_cli.evaluation import leaderboard
from alphapo_cli.runtime.tables import Table
from alphapo_cli.storage.csv_text import cell
from tests.conftest import plain_rows, write_rows

ESCAPES = "\x1b]0;owned\x07\x1b[2Jx\u202ey\u2066z\r\n"


def obeyed(text: str) -> list[str]:
    """Characters that a terminal obeys, by Unicode's categories: controls, and the marks of direction among formats."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(c) in
            ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")]  # fmt: skip


@given(st.text(st.characters()))
def test_nothing_is_obeyed_and_nothing_else_is_changed(text: str) -> None:
    shown = visible(text)
    assert not obeyed(shown)
    assert is_plain(shown)
    if not obeyed(text) and not set(text) & set("\u061c\u200e\u200f"):
        assert shown == text


def test_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(ESCAPES)
    assert capsys.readouterr().out == "\\x1b]0;owned\\x07\\x1b[2Jx\\u202ey\\u2066z\\r\\n\n"


def test_a_table() -> None:
    from rich.console import Console

    table = Table(title=ESCAPES)
    table.add_column("a")
    table.add_row(ESCAPES)
    file = io.StringIO()
    Console(file=file, width=120).print(table)
    assert [c for c in obeyed(file.getvalue()) if c != "\n"] == []


def test_a_column_of_data(tmp_path: Path, alphapo, scratch_line) -> None:
    """In notes, in the table and in refusals."""
    rows = [{**row, f"col{ESCAPES}": 1.5} for row in plain_rows()]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    ran = alphapo("train", *scratch_line, f"data.path={file}", "trainer.max_steps=1")
    assert ran.code == 0, ran.err
    assert [c for c in obeyed(ran.err + ran.out) if c != "\n"] == []
    bad = alphapo("train", *scratch_line, f"data.path={tmp_path / f'no{chr(27)}file'}")
    assert bad.code == 2
    assert "\x1b" not in bad.err


@pytest.mark.parametrize("line", [("run.name=a\x1b[2J",), ("run.dir=a\tb",), ("--out", "a\nb")])
def test_names_with_control_characters_are_refused(line, alphapo, tiny, tmp_path) -> None:
    ran = alphapo("sweep" if line[0] == "--out" else "train", *tiny, *line, *(["seed=0,1"] * (line[0] == "--out")))
    assert ran.code == 2
    assert "control character" in ran.fault
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\rx"])
def test_text_in_a_csv_file_is_not_computed(text: str, tmp_path: Path) -> None:
    written = visible(text) if text[0] in "\t\r" else f"'{text}"
    assert cell(text) == written
    board = tmp_path / "leaderboard.csv"
    for win_rate in (10.0, 20.0):
        leaderboard.update(board, text, {"win_rate": win_rate})
    rows = list(csv.reader(io.StringIO(board.read_text(), newline="")))
    assert [row[:2] for row in rows[1:]] == [[written, "20.0"]]


@pytest.mark.parametrize("value", ["-0.5", "+3", "-1e-3", -0.5, "plain", "a=b", "", 7])
def test_numbers_and_other_text_are_left(value: object) -> None:
    assert cell(value) == value


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json"])
def test_a_key_that_stands_twice_is_refused(name: str, tmp_path: Path, alphapo, scratch_line) -> None:
    """As in the header of a CSV file: readers disagree on which counts."""
    rows = [json.dumps(row) for row in plain_rows()]
    rows[4] = rows[4][:-1] + ', "chosen": "another"}'
    file = tmp_path / name
    file.write_text("[" + ",".join(rows) + "]" if name.endswith(".json") else "\n".join(rows))
    ran = alphapo("train", *scratch_line, f"data.path={file}")
    assert ran.code == 2
    assert "the key 'chosen' stands twice in one JSON object" in ran.fault
    if name.endswith("l"):
        assert "line 5" in ran.fault


def test_a_table_shows_its_texts_as_they_are() -> None:
    """Names are no styles, links or commands: neither a broken tag nor an escape sequence counts for anything."""
    import io

    from rich.console import Console

    from alphapo_cli.runtime.tables import Table

    odd = "\x1b[31m[red]x[/y] [link=http://a]b[/link]"
    table = Table("first", title=odd)
    table.add_column(odd)
    table.add_row(odd, odd)
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=True, no_color=True).print(table)
    assert "\x1b[31m" not in out.getvalue()
    assert "http://a\x1b" not in out.getvalue()
    assert out.getvalue().count("\\x1b[31m[red]x[/y] [link=http://a]b[/link]") == 4

"""Files that do not fit into memory, though they look small, are refused with the row and the limit."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alphapo_cli.data import sources
from alphapo_cli.data.sources import read_files
from alphapo_cli.errors import UsageError
from alphapo_cli.storage import strict_json

ROW = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"


def test_a_long_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(ROW + json.dumps({"prompt": "x" * 3_000_000, "chosen": "b", "rejected": "c"}) + "\n" + ROW)
    with pytest.raises(UsageError, match=r"pairs.jsonl: line 2 is longer than 2 MiB \(data.max_row_mb\)"):
        read_files([file], max_row_mb=2)
    assert len(read_files([file], max_row_mb=3)) == 3
    assert len(read_files([file])) == 3


def test_a_limit_on_the_users_line(tmp_path: Path, alphapo, scratch_line) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(ROW * 20)
    refused = alphapo("train", *scratch_line, f"data.path={file}", "data.max_row_mb=1e-5")
    assert refused.code == 2
    assert "pairs.jsonl: line 1 is longer than 9.53674e-06 MiB (data.max_row_mb)" in refused.fault


@pytest.mark.slow
def test_a_file_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "bomb.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(2048):
            stream.write(b" " * (1 << 20))
    code = (
        "import resource, sys; from pathlib import Path; from alphapo_cli.data.sources import read_files\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: read_files([Path(sys.argv[1])])\n"
        "except Exception as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip().endswith("line 1 is longer than 64 MiB (data.max_row_mb); is this JSON Lines?"), (
        ran.stderr
    )


@pytest.mark.parametrize("name", ["pairs.json", "pairs.csv", "pairs.json.gz"])
def test_what_is_read_as_one_text_has_a_limit_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "WHOLE", 1 << 20)
    file = tmp_path / name
    content = b"[" + b" " * (2 << 20) + b"]"
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UsageError, match=r"holds more than 1 MiB, which are read as one text; write it as JSON Lines"):
        read_files([file])


@pytest.mark.slow
def test_empty_lines_without_end_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(ROW + "\n" * 3_000_000 + ROW)
    assert len(read_files([file])) == 2
    with pytest.raises(UsageError, match=r"pairs.jsonl: more than 1 MiB of empty lines up to line 10485\d\d"):
        read_files([file], max_row_mb=1)


@pytest.mark.parametrize("name", ["pairs.jsonl.gz", "pairs.json.gz"])
def test_a_file_that_unpacks_to_more_than_data_would_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "SMALL", 1 << 20)
    file = tmp_path / name
    row = json.dumps({"prompt": "x" * 100_000, "chosen": "b", "rejected": "c"})
    text = "[" + ",".join([row] * 200) + "]" if name.endswith(".json.gz") else (row + "\n") * 200
    file.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UsageError, match=r"unpacks to more than|holds more than"):
        read_files([file])


def test_a_long_field_of_csv_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("prompt,chosen,rejected\na,b,c\n" + "x" * 3_000_000 + ",b,c\n")
    with pytest.raises(UsageError, match=r"pairs.csv: line 3: a field is longer than 2 MiB \(data.max_row_mb\)"):
        read_files([file], max_row_mb=2)
    assert len(read_files([file])) == 2

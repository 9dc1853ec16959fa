"""Atomic writing: what a reader finds after a success, a failure and a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.data.token_cache import encode_cached
from alphapo_cli.errors import AlphapoError
from alphapo_cli.storage.atomic import jsonable, write_atomic, write_json
from alphapo_cli.storage.jsonl import LineLog, append_jsonl, read_jsonl
from alphapo_cli.storage.owned_directory import owned_directory
from alphapo_cli.storage.run_lock import RunLock, acquire
from tests.data import data_tokenizers as tokenizers


def test_writes_text_and_bytes_and_makes_the_directory(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "text.txt", "grüß dich\n")
    write_atomic(tmp_path / "raw", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text.txt").read_bytes() == "grüß dich\n".encode()
    assert (tmp_path / "raw").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["raw", "text.txt"]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "shared.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "shared.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_atomic(tmp_path / "f.json", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "f.json", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"f.json": "old"}


class _Disk:
    """What was flushed to disk and what was renamed, in order: names relative to `root`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        fsync = os.fsync

        def flushed(handle: int) -> None:
            fsync(handle)
            self.done.append(("flush", os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), root)))

        monkeypatch.setattr(os, "fsync", flushed)
        for name in ("replace", "rename", "link"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name), root))

    def _noting(self, move: Callable[..., None], root: Path) -> Callable[..., None]:
        def noted(source: Path, target: Path) -> None:
            move(source, target)
            self.done.append(("name", os.path.relpath(target, root)))

        return noted

    def flushed_after(self, name: str) -> set[str]:
        """What was flushed after the last entry called `name` was made."""
        at = max(i for i, entry in enumerate(self.done) if entry == ("name", name))
        return {what for kind, what in self.done[at:] if kind == "flush"}


class TestPowerFailure:
    """A rename is on disk only once the directory that holds the name is."""

    def test_a_file_and_the_new_directories_above_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = _Disk(tmp_path, monkeypatch)
        write_json(tmp_path / "a" / "b" / "f.json", {})
        assert "a/b" in disk.flushed_after("a/b/f.json")
        assert {("flush", "."), ("flush", "a")} <= set(disk.done)

    def test_a_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = _Disk(tmp_path, monkeypatch)
        lock = acquire(tmp_path / "claim")
        assert isinstance(lock, RunLock)
        with owned_directory(tmp_path / "runs" / "model", lock) as folder:
            (folder / "weights").write_text("1")
        assert "runs" in disk.flushed_after("runs/model")
        assert ("flush", ".") in disk.done

    def test_an_entry_of_the_token_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = _Disk(tmp_path, monkeypatch)
        tokenizer = tokenizers.word_level(["a", "b", "c", "d"])
        pair = TextPair("a b", "c", "d")
        _, key = encode_cached([pair], tokenizer, DataConfig(template="plain"), tmp_path)
        assert "tokens" in disk.flushed_after(f"tokens/{key}")
        assert any(what.endswith("/tokens.npz") for kind, what in disk.done if kind == "flush")

    def test_every_state_of_a_run_lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = _Disk(tmp_path, monkeypatch)
        lock = acquire(tmp_path / "claim")
        assert isinstance(lock, RunLock)
        lock.commit(tmp_path / "result.json", "mine")
        for name in ("claim/000001.json", "claim/000001.end", "claim/000001.done"):
            assert "claim" in disk.flushed_after(name)
        assert "." in disk.flushed_after("result.json")

    def test_a_log_whose_lines_are_flushed_one_by_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = _Disk(tmp_path, monkeypatch)
        with LineLog(tmp_path / "answers" / "log.jsonl", "alphapo generate") as log:
            assert {("flush", "answers"), ("flush", ".")} <= set(disk.done)
            log.add({"row": 0})

    def test_a_file_system_that_cannot_flush_directories_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fsync = os.fsync

        def files_only(handle: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(22, "Invalid argument")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", files_only)
        write_atomic(tmp_path / "f", "x")
        assert (tmp_path / "f").read_text() == "x"


def test_a_value_without_json_form_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json(tmp_path / "f.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path, lengths, stop = tmp_path / "f.txt", {1_000, 300_000}, threading.Event()
    write_atomic(path, "x" * 1_000)
    seen = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(len(path.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        write_atomic(path, "x" * (300_000 if i % 2 else 1_000))
    stop.set()
    reader.join()
    assert seen
    assert seen <= lengths


@dataclass
class _Point:
    x: float
    where: Path


def test_jsonable_of_what_a_run_holds() -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf, 1.5],
        3: (1, True, None),
        "numpy": np.float32(0.5),
        "array": np.array([1.0, np.nan]),
        "count": np.int64(7),
        "point": _Point(math.nan, Path("runs/a")),
        "set": {"b", "a"},
    }
    assert jsonable(value) == {
        "nan": None,
        "inf": [None, None, 1.5],
        "3": [1, True, None],
        "numpy": 0.5,
        "array": [1.0, None],
        "count": 7,
        "point": {"x": None, "where": "runs/a"},
        "set": ["a", "b"],
    }


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_json)
def test_whatever_goes_in_strict_json_comes_out(value: object) -> None:
    def refuse(word: str) -> object:
        raise AssertionError(f"{word} is not JSON")

    json.loads(json.dumps(jsonable(value)), parse_constant=refuse)


def test_write_json_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": math.nan})
    write_json(tmp_path / "b.json", {"b": 1, "a": "é"}, sort_keys=True)
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": null\n}\n'
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'


def test_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        append_jsonl(path, {"step": step, "loss": math.nan if step == 1 else 0.5})
    assert read_jsonl(path) == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2, "loss": 0.', b'{"step": 2}', b'{"word": "gr\xc3', b"x" * 200_000])
def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(torn)
    assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 2, "again": True})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step"')
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 0})
    assert path.read_bytes() == b'{"step": 0}\n'


@pytest.mark.parametrize("broken", ["{oops}", "[1]"])
def test_a_broken_whole_line_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{broken}\n{{"step": 2}}\n')
    with pytest.raises(AlphapoError, match=r"metrics\.jsonl, line 2: .*delete the line to go on"):
        read_jsonl(path)


def test_a_kill_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = (
        "import sys; from alphapo_cli.storage.jsonl import append_jsonl\n"
        "for i in range(10**9):\n"
        "    append_jsonl(sys.argv[1], {'step': i, 'pad': 'x' * 5000})\n"
        "    if i == 50: print('go', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    rows = read_jsonl(path)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) > 50


@pytest.mark.parametrize("log", ["append_jsonl", "LineLog"])
def test_a_row_that_only_half_fits_on_the_disk_is_an_error(log: str, tmp_path: Path) -> None:
    """A file system with room for a part of a row takes that part without an error; so does a limit on the size."""
    path = tmp_path / "rows.jsonl"
    code = (
        "import resource, sys; from pathlib import Path; from alphapo_cli.storage.jsonl import append_jsonl\n"
        "from alphapo_cli.storage.jsonl import LineLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "path, row = Path(sys.argv[1]), {'pad': 'x' * 200}\n"
        "if sys.argv[2] == 'append_jsonl':\n"
        "    append_jsonl(path, row)\n"
        "else:\n"
        "    with LineLog(path, 'x') as log:\n"
        "        log.add(row)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, path, log], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "OSError: [Errno 27] File too large" in ended.stderr


def test_a_directory_whose_file_the_disk_refuses_at_the_last_moment_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As file systems do that find out at write-back: NFS, quotas."""
    target, lock = tmp_path / "steps" / "step-1", acquire(tmp_path / "claim")
    assert isinstance(lock, RunLock)
    with owned_directory(target, lock) as folder:
        (folder / "state").write_text("old")

    def refuse(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"), owned_directory(target, lock) as folder:
        (folder / "state").write_text("new")
    assert (target / "state").read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["step-1"]

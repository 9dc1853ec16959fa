"""A file of ours that is damaged answers like bad input: one line with the file, what is wrong and what to do."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from alphapo_cli.errors import first_line, in_words, refusal
from tests.conftest import Ran

MADE = ("generation.backend=transformers", "data.limit=2", "generation.max_new_tokens=2", "--out", "out")


@pytest.fixture
def run(trained: Ran, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name))


@pytest.fixture
def line(trained: Ran) -> list[str]:
    """The line that trained the run."""
    typed: list[str] = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
    return typed


@pytest.mark.parametrize(
    "content",
    [b"\x80\x81", b"- a\n- b\n", b"a: [", b"1: {2: 3}\n", b"\x00", b"{" * 3000, b"data: !!python/name:os.system\n"],
)
def test_settings(content: bytes, run: Path, line: list[str], alphapo: Callable[..., Ran]) -> None:
    (run / "config.yaml").write_bytes(content)
    for again in (line, ["generate", str(run), *MADE]):
        ran = alphapo(*again)
        assert ran.code == 2, ran.err
        assert "config.yaml" in ran.fault
        assert "--debug" not in ran.fault


@pytest.mark.parametrize("content", ["null", "{", "[]", '{"made_by": null}', ""])
def test_manifest(content: str, run: Path, line: list[str], alphapo: Callable[..., Ran]) -> None:
    (run / "manifest.json").write_text(content)
    ran = alphapo(*line)
    assert ran.code == 2
    assert run.name in ran.fault
    assert "--debug" not in ran.fault


def test_nulls_in_a_manifest_of_an_older_version(run: Path, line: list[str], alphapo: Callable[..., Ran]) -> None:
    """It has no checksum, so it is believed; the run is complete."""
    (run / "manifest.json").write_text(
        json.dumps({"made_by": "alphapo", "format": 2, "files": None, "data": None, "versions": None, "weights": None})
    )
    ran = alphapo(*line)
    assert ran.code in (0, 2)
    assert "--debug" not in ran.err


def test_a_complete_run_without_settings_is_not_trained_anew(
    run: Path, line: list[str], alphapo: Callable[..., Ran], snapshot
) -> None:
    (run / "config.yaml").unlink()
    before = snapshot(run)
    ran = alphapo(*line)
    assert ran.code == 2
    assert "config.yaml is missing" in ran.fault
    assert "--replace" in ran.fault
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "row",
    [{}, {"row": 0, "sample": 0, "ids": "text", "cut": False}, {"row": 0, "sample": 0, "ids": ["a"], "cut": False},
     {"row": None, "sample": 0, "ids": [1], "cut": False}, {"row": 0, "sample": 0, "ids": [1], "cut": "no"}],
)  # fmt: skip
def test_answers_under_way(row: dict[str, object], alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    from alphapo_cli.errors import UsageError
    from alphapo_cli.stages.directories.generation import GenerateDirectory

    (tmp_path / "partial.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"partial.jsonl: a line is no answer"):
        GenerateDirectory(tmp_path).finished()


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": "2"}, {"step": None}])
def test_metrics_without_a_step(row: dict[str, object], tmp_path: Path) -> None:
    from alphapo_cli.errors import AlphapoError
    from alphapo_cli.runs.directory import RunDirectory

    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(AlphapoError, match=r"metrics.jsonl: row 2 has no step"):
        RunDirectory(tmp_path).rows()


def test_a_limit_on_the_size_of_files_is_a_refusal_of_the_disk() -> None:
    words = refusal(OSError(27, os.strerror(27), "runs/x/model"))
    assert words is not None
    assert words.startswith("File too large (runs/x/model)")


def test_torchs_advice_is_never_repeated() -> None:
    error = RuntimeError("Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` ...")
    for said in (first_line(error), in_words(error)):
        assert "weights_only" not in said
        assert "safetensors" in said


def test_the_directory_of_the_shell_is_gone(alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    here = os.getcwd()
    for command in ("objectives", "env", "metrics"):
        gone.mkdir(exist_ok=True)
        os.chdir(gone)
        gone.rmdir()
        try:
            import contextlib
            import io

            from alphapo_cli.cli.main import main

            err = io.StringIO()
            with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main([command])
        finally:
            os.chdir(here)
        assert ended.value.code == 2
        assert err.getvalue() == "alphapo: the current directory does not exist any more; cd to one that does\n"


def test_cached_ids_are_their_owners_alone_and_a_run_is_as_the_umask_says(
    alphapo: Callable[..., Ran], tiny, tmp_path: Path, shared_cache: Path
) -> None:
    cache = Path(shutil.copytree(shared_cache, tmp_path / "cache"))
    shutil.rmtree(cache / "tokens", ignore_errors=True)
    before = os.umask(0o022)
    try:
        ran = alphapo("train", *tiny, "trainer.max_steps=1", "probe.samples=0", "run.name=x", cache=cache)
    finally:
        os.umask(before)
    assert ran.code == 0, ran.err
    entries = list((cache / "tokens").rglob("*"))
    assert entries
    assert {stat.S_IMODE(p.stat().st_mode) for p in entries} == {0o700, 0o600}
    assert stat.S_IMODE((ran.path / "metrics.jsonl").stat().st_mode) == 0o644
    assert stat.S_IMODE(ran.path.stat().st_mode) == 0o755

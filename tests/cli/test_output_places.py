"""A place that cannot take output is refused with exit code 2 and one line, before data or models are looked at.

The tests may run as root, for whom permission bits mean nothing: places are spoilt by a regular file in the way, or lie
in /proc, where nobody can make files.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

# Data and a model that are not there: a line that names them instead has looked at them first.
LATER = ("data=jsonl", "data.path=gone.jsonl", "model.path=./gone")
NO_FILES = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files")
LONG = "x" * 300


def refused(ran, *parts):
    assert ran.code == 2, (ran.code, ran.err)
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in ran.fault, ran.fault


@pytest.fixture
def folder(tmp_path):
    """Where the commands run: a regular file, a directory, an annotations file."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "directory").mkdir()
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.0}
    (tmp_path / "annotations.json").write_text(json.dumps([row, row | {"instruction": "r"}]))
    return tmp_path


@pytest.fixture
def untouched(folder):
    """Checks that what was refused left nothing behind."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


JSON = [
    ("", "--json ''", "name a file"),
    ("directory", "--json directory", "is a directory"),
    ("missing/x.json", "no such folder", "missing"),
    ("file/x.json", "no such folder", "file"),
    (f"{LONG}.json", "cannot be written", "too long"),
    pytest.param("/proc/x.json", "--json /proc/x.json", "cannot be written", marks=NO_FILES),
]
COMMANDS = {
    "train": ("train", *LATER),
    "sweep": ("sweep", "alpha", "objective.shape.alpha=0", "launcher.workers=0", *LATER),
    "eval": ("eval", "gone.json", "--reference", "gone.json"),
    "compare": ("compare", "gone", "gone.json"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("target", "named", "why"), JSON)
def test_json(command, target, named, why, alphapo, untouched):
    ran = alphapo(*COMMANDS[command], "--json", target)
    refused(ran, named, why)
    assert ran.out == ""


RUNS = [
    (("run.dir=.", "run.name=file"), "file is not a directory"),
    (("run.dir=file",), "file is not a directory"),
    (("run.dir=file/deep/er",), "file is not a directory"),
    ((f"run.name={LONG}",), "too long"),
    ((f"run.dir={LONG}",), "too long"),
    pytest.param(("run.dir=/proc/runs",), "cannot be used", marks=NO_FILES),
]


@pytest.mark.parametrize(("line", "why"), RUNS)
@pytest.mark.parametrize("more", [(), ("--replace",)])
def test_the_directory_of_a_run(line, why, more, alphapo, untouched):
    ran = alphapo("train", *LATER, *line, *more)
    refused(ran, why, "choose another run.dir or run.name")
    assert ran.out == ""


OUT = [
    ("file", "file is not a directory"),
    ("file/in/it", "file is not a directory"),
    (LONG, "too long"),
    pytest.param("/proc/out", "cannot be used", marks=NO_FILES),
]


@pytest.mark.parametrize(("out", "why"), OUT)
def test_the_directory_of_a_sweep(out, why, alphapo, untouched):
    ran = alphapo(*COMMANDS["sweep"], "--out", out)
    refused(ran, why, "choose another --out")
    assert ran.out == ""


@pytest.mark.parametrize(("out", "why"), OUT)
def test_the_directory_of_an_evaluation(out, why, alphapo, folder):
    """Before the judge is asked, who may cost money."""
    row = {"instruction": "name two fruits .", "output": "apple", "generator": "g"}
    (folder / "outputs.json").write_text(json.dumps([row]))
    before = sorted(folder.rglob("*"))
    ran = alphapo("eval", "outputs.json", "--reference", "outputs.json", "--judge", "glassbox", "--out", out)
    refused(ran, why, "choose another --out")
    assert ran.out == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("target", ["directory", "missing/l.csv", "file/l.csv"])
def test_the_leaderboard(target, alphapo, folder):
    row = {"instruction": "name two fruits .", "output": "apple", "generator": "g"}
    (folder / "outputs.json").write_text(json.dumps([row]))
    line = ("eval", "outputs.json", "--reference", "outputs.json", "--judge", "glassbox")
    refused(alphapo(*line, "--leaderboard", target), f"--leaderboard {target}")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("cache", ["file", "file/deep", pytest.param("/proc/cache", marks=NO_FILES)])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_cache(command, cache, alphapo, folder):
    (folder / "gone.jsonl").touch()
    (folder / "gone").mkdir()
    (folder / "gone" / "config.json").write_text("{}")  # is there, and nothing that could be loaded
    (folder / "gone" / "model.safetensors").write_bytes(b"-")
    ran = alphapo(*COMMANDS[command], cache=folder / cache)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].endswith("set ALPHAPO_CACHE to a directory that can be written"), ran.err


@pytest.mark.slow
def test_a_current_directory_that_is_gone(tmp_path):
    """Somebody removed it under the shell's feet."""
    for line in ("train", "loss rows.jsonl", "compare a b --json x.json"):
        gone = tmp_path / "gone"
        gone.mkdir()
        program = "import os, sys\nos.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\nfrom alphapo_cli.cli.main import main\nmain(sys.argv[2:])"
        done = subprocess.run(
            [sys.executable, "-c", program, str(gone), *line.split()],
            env=environment(tmp_path / "cache") | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        (fault,) = done.stderr.splitlines()
        assert "current directory does not exist" in fault or "No such file" in fault


def test_a_complete_run_is_shown_wherever_it_lies(alphapo, trained, monkeypatch):
    """Nothing will be written, so nothing is asked of the place."""
    from alphapo_cli.storage import atomic

    def refuse(folder):
        raise OSError("read-only file system")

    monkeypatch.setattr(atomic, "_try_to_write", refuse)
    line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
    ran = alphapo(*line, cwd=trained.path.parent.parent)
    assert (ran.code, ran.out.splitlines()) == (0, [str(trained.path), "complete"])


class TestStreams:
    """`--json` may name a device or a pipe: it is written into and stays what it is."""

    LINE = ("compare", "annotations.json", "annotations.json", "--resamples", "100", "--json")

    def test_a_device(self, alphapo, folder):
        master, device = os.openpty()
        ran = alphapo(*self.LINE, os.ttyname(device))
        assert ran.code == 0, ran.err
        assert json.loads(os.read(master, 10_000))["n"] == 2
        assert stat.S_ISCHR(os.stat(os.ttyname(device)).st_mode)
        os.close(master)
        os.close(device)

    def test_a_pipe(self, alphapo, folder):
        os.mkfifo(folder / "pipe")
        end = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        ran = alphapo(*self.LINE, "pipe")
        assert ran.code == 0, ran.err
        assert json.loads(os.read(end, 10_000))["n"] == 2
        os.close(end)
        assert stat.S_ISFIFO(os.stat(folder / "pipe").st_mode)

    def test_a_regular_file_is_replaced(self, alphapo, folder):
        assert alphapo(*self.LINE, "file").code == 0
        assert json.loads((folder / "file").read_text())["n"] == 2

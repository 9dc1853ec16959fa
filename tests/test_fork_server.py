"""A forked process does what one of its own does that started cold: streams, directory, environment, signals, exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import entry_point, environment

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "line",
    [
        ("train", "objective=alphap"),
        ("train", "objective=alphap", "--debug"),  # an exception that ends the interpreter
        ("loss", "-", "objective=dpo"),
        ("train", "objective=dpo", "--print-config"),
        (),
    ],
    ids=" ".join,
)
def test_it_says_and_ends_as_a_cold_start_does(line, forked, cli, tmp_path):
    cold, warm = cli(*line), forked(*line)
    assert warm.code == cold.code
    assert warm.out == cold.out
    assert warm.err.splitlines()[-1:] == cold.err.splitlines()[-1:]
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_that_of_a_cold_start(forked, cli, tiny, shared_cache, tmp_path):
    """In a directory of its own, with W&B's service and all that ends with the interpreter."""
    line = ("train", *tiny, "tracking.mode=offline", "run.name=x")
    made = []
    for run, name in ((cli, "cold"), (forked, "warm")):
        (tmp_path / name).mkdir()
        made.append(run(*line, cwd=tmp_path / name, cache=shared_cache))
        assert made[-1].code == 0, made[-1].err
        assert made[-1].path == tmp_path / name / "runs" / "x"
    cold, warm = made
    files = [sorted(p.relative_to(ran.path).parts[0] for p in ran.path.rglob("*")) for ran in made]
    assert set(files[0]) == set(files[1])
    for file in ("metrics.jsonl", "probe.jsonl", "model/model.safetensors"):
        assert (warm.path / file).read_bytes() == (cold.path / file).read_bytes()
    commands = [json.loads((ran.path / "manifest.json").read_text())["command"] for ran in made]
    assert commands[0] == commands[1]


def test_its_process_is_handled_like_any_other(fork_server, tmp_path, shared_cache, tiny):
    line = [*entry_point(), "train", *tiny, "trainer.max_steps=5000", "run.name=x"]
    env = environment(shared_cache)
    with fork_server.popen(
        line, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.poll() is None
        assert os.getsid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs" / "x" / "metrics.jsonl").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()  # nobody is left for others to wait for


def test_an_environment_that_imports_may_have_read_is_not_for_it(forked):
    with pytest.raises(ValueError, match="MPLBACKEND"):
        forked("--version", env={"MPLBACKEND": "svg"})

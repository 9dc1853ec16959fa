"""Without a terminal, whatever takes long says what it is: a log that stands still looks like a process that hangs."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import typer.main

from alphapo_cli.cli import main
from alphapo_cli.errors import say
from alphapo_cli.runtime.heartbeat import Heartbeat, at_work
from alphapo_cli.runtime.progress import Progress

BEAT = 0.1  # seconds; 30 in the product


def wait_for(capsys, count):
    """The lines on stderr, once there are `count`; fails after 10 s, a hundred times what they need."""
    lines: list[str] = []
    end = time.monotonic() + 10.0
    while len(lines) < count:
        assert time.monotonic() < end, lines
        time.sleep(BEAT / 10)
        lines += capsys.readouterr().err.splitlines()
    return lines


def test_what_has_no_loop_says_what_it_is(capsys):
    with Heartbeat(BEAT):
        at_work("loading the model")
        lines = wait_for(capsys, 2)
    assert set(lines) == {"loading the model: still at work, 0 s by now"}
    time.sleep(2 * BEAT)
    assert capsys.readouterr().err == ""  # it is over


def test_a_batch_that_takes_long_says_what_is_done(capsys):
    with Heartbeat(BEAT), Progress(22, "pairs", "reference log-probs") as progress:
        progress.update(8)
        lines = wait_for(capsys, 1)
    assert lines[0].startswith("reference log-probs: 8 of 22 pairs: still at work, ")


def test_whoever_speaks_is_not_interrupted(capsys):
    with Heartbeat(1.0):
        for _ in range(30):  # 1.5 s
            say("step", file=sys.stderr)
            time.sleep(0.05)
    assert capsys.readouterr().err.splitlines() == ["step"] * 30


@pytest.mark.parametrize("why", ["a terminal", "another process"])
def test_a_bar_and_other_processes_need_none(why, capsys, monkeypatch):
    if why == "a terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    else:
        monkeypatch.setenv("RANK", "1")
    with Heartbeat(0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_commands_by_the_names_that_are_typed():
    """`evaluate` was among those that one process runs, which is typed `eval`: torchrun ran it twice."""
    group: Any = typer.main.get_command(main.app)
    assert {*main._LONG} <= set(group.commands)

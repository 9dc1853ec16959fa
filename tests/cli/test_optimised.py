"""Under `python -O`, where asserts are not executed: bad input is refused as ever, and so no assert may do work."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import alphapo_cli
from tests.conftest import BARE, SCRATCH, environment

ROOT = Path(__file__).parents[2]
PACKAGE = Path(alphapo_cli.__file__).parent
# What narrows a type for mypy and cannot fail: `x is not None`, `isinstance(x, T)`, of names and attributes.
NARROWING = re.compile(r"[\w.]+ is not None|isinstance\([\w.]+, [\w.]+\)")


def test_no_assert_does_work():
    asserts = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not NARROWING.fullmatch(ast.unparse(node.test))
    ]
    assert asserts == []


@pytest.mark.slow
def test_a_sweep_over_a_bad_file(tmp_path):
    """With a worker process, whose first answer is whether the data is good."""
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    line = ("sweep", "alpha", *SCRATCH, *BARE, "launcher.workers=1", "data=jsonl", "data.path=broken.jsonl")
    ran = subprocess.run(
        [sys.executable, "-O", "-m", "alphapo_cli", *line],
        cwd=tmp_path, env=environment(tmp_path / "cache", {"PYTHONOPTIMIZE": "1"}),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    (fault,) = ran.stderr.splitlines()
    assert "broken.jsonl: line 1" in fault
    assert not list(tmp_path.rglob("cells"))


# pytest rewrites the asserts of test modules, so that they are executed under -O as well. This says whether it still does.
CANARY = """
import pytest

@pytest.mark.xfail(strict=True)
def test_asserts_of_tests_are_executed():
    assert False

def test_others_are_not():
    assert not __debug__
"""


@pytest.mark.slow
def test_bad_input(tmp_path):
    """The tests of bad input once more, in a process of their own."""
    canary = tmp_path / "test_canary.py"
    canary.write_text(CANARY)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    # The warning says that asserts outside of tests are not executed; as a plugin of pytest, Hydra would execute its own.
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:hydra_pytest", "-W", "ignore::pytest.PytestConfigWarning")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--basetemp={tmp_path / 'base'}",
         f"--rootdir={ROOT}", "tests/cli/test_bad_input.py", str(canary)],
        cwd=ROOT, env={**kept, "PYTHONOPTIMIZE": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert re.search(r"\d\d passed, 1 xfailed", ran.stdout)

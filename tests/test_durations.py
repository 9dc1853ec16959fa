"""The plugin that writes durations and holds budgets, and the choice of modules that are imported, on small projects."""

from __future__ import annotations

import json
import os

import pytest

from tests import durations
from tests.selection import may_hold

pytest_plugins = ["pytester"]
BUSY = """
import pytest, time

def work(seconds=0.2):
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass

def test_plain():
    work()

@pytest.mark.slow
def test_marked():
    work()

@pytest.mark.slow
@pytest.mark.nightly
def test_both():
    work(0.01)
"""


@pytest.fixture
def project(pytester, monkeypatch, tmp_path):
    """Runs pytest on BUSY under budgets of `default` and `slow`."""
    monkeypatch.setattr(durations, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(durations, "BUDGET", tmp_path / "budget.toml")
    pytester.makeconftest(
        "from tests.durations import Durations\n\ndef pytest_configure(config):\n    config.pluginmanager.register(Durations(config))\n"
    )
    (pytester.mkdir("cases") / "test_busy.py").write_text(BUSY)
    pytester.makeini("[pytest]\ntestpaths = cases\nmarkers =\n    slow\n    nightly\n")

    def run(*arguments: str, **budget: float) -> tuple[int, str]:
        (tmp_path / "budget.toml").write_text("".join(f"{name} = {seconds}\n" for name, seconds in budget.items()))
        ran = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider", *arguments)
        return int(ran.ret), ran.stdout.str()

    return run


def rows(path) -> dict[str, dict]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["cpu"] for row in found] == sorted((row["cpu"] for row in found), reverse=True)
    return {row["test"].rpartition("::")[2]: row for row in found}


def test_every_run_writes_what_each_test_took(project, tmp_path):
    assert project(default=100, slow=100, nightly=100)[0] == 0
    plain, marked, both = (
        rows(tmp_path / "build" / f"test-durations-{marker}.jsonl") for marker in ("default", "slow", "nightly")
    )
    assert (set(plain), set(marked), set(both)) == ({"test_plain"}, {"test_marked"}, {"test_both"})
    row = plain["test_plain"]
    assert row["cpu"] * row["slowness"] == pytest.approx(0.2, rel=0.2)
    assert row["wall"] >= 0.19
    assert (row["outcome"], row["marker"]) == ("passed", "default")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [("-k", "plain"), ("cases/test_busy.py",), ("--deselect", "cases/test_busy.py::x")], ids=" ".join
)
def test_a_part_of_a_run_holds_no_budget_and_spoils_no_file(choice, project, tmp_path):
    project(default=100, slow=100, nightly=100)
    before = {path.name: path.read_bytes() for path in (tmp_path / "build").iterdir()}
    assert project(*choice, default=0.001, slow=100, nightly=100)[0] == 0
    assert "test_plain" in rows(tmp_path / "build" / "test-durations-part.jsonl")
    assert {name: (tmp_path / "build" / name).read_bytes() for name in before} == before


def test_half_as_much_again_as_the_budget_fails_the_run(project):
    code, said = project("-m", "slow and not nightly", slow=0.01)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "over budget: tests of marker slow took " in said


def test_a_marker_without_a_budget_fails_the_run(project):
    code, said = project("-m", "not nightly", default=100)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "marker slow has no budget" in said


def test_bounds_of_a_budget():
    assert durations.exceeded({"slow": 150.0, "default": 1.0}, {"slow": 100, "default": 1}) == []
    (said,) = durations.exceeded({"slow": 151.0}, {"slow": 100})
    assert said == "tests of marker slow took 151 s of CPU time, their budget is 100 s"


def test_children_count():
    before = durations.cpu_seconds()
    if (child := os.fork()) == 0:
        total = 0
        for i in range(3_000_000):
            total += i
        os._exit(0)
    os.waitpid(child, 0)
    assert durations.cpu_seconds() - before > 0.03


@pytest.mark.parametrize(
    ("expression", "source", "imported"),
    [
        ("slow", "def test(): pass", False),
        ("slow", "@pytest.mark.slow", True),
        ("not slow", "@pytest.mark.slow", True),  # another test of the module may have no mark
        ("slow and not vllm", "pytestmark = pytest.mark.vllm", False),
        ("slow and not vllm", "pytest.mark.vllm pytest.mark.slow", True),
        ("vllm or ray", "pytest.mark.slow", False),
        ("vllm or ray", "pytest.param(1, marks=pytest.mark.ray)", True),
        ("(slow or nightly) and not gpu", "@pytest.mark.nightly\n@pytest.mark.parametrize", True),
    ],
)
def test_modules_without_a_test_that_is_wanted_are_not_imported(expression, source, imported):
    assert may_hold(expression, source) is imported

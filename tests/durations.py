"""A pytest plugin: how long each test took, in a file after every run, and a budget for the tests of each marker.

Time is CPU time of the test's process, of processes that it waited for and of those behind `tests.fork_server`, so that
it does not depend on how many workers share the tests. It does depend on the machine and on what else runs there, by a
factor of two in an hour: so the same few milliseconds of work are timed between the tests, and seconds are those of a
machine that takes `PACE` over them.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build"
BUDGET = Path(__file__).with_name("budget.toml")
# The first of these that a test has is the one that it counts under; `default` where it has none.
MARKERS = ("nightly", "gpu", "vllm", "slurm", "ray", "browser", "slow")
PACE = 0.0045  # seconds of `_work` on the machine whose seconds the budgets count
_EVERY = 2.0  # seconds between two looks at the pace

elsewhere = 0.0  # CPU seconds of processes that are nobody's children here


def marker_of(item: pytest.Item) -> str:
    return next((name for name in MARKERS if item.get_closest_marker(name)), "default")


def cpu_seconds() -> float:
    """Of this process, of the children that it has waited for, and of what was told to `elsewhere`."""
    return sum(os.times()[:4]) + elsewhere


def _work() -> None:
    total = 0
    for i in range(60_000):
        total += i * i % 7


def exceeded(seconds: dict[str, float], budget: dict[str, float]) -> list[str]:
    """A sentence for each marker whose tests took half as much again as its budget, or that has none."""
    said = []
    for marker, taken in sorted(seconds.items()):
        if marker not in budget:
            said.append(f"marker {marker} has no budget in tests/{BUDGET.name}; its tests took {taken:.0f} s")
        elif taken > 1.5 * budget[marker]:
            said.append(f"tests of marker {marker} took {taken:.0f} s of CPU time, their budget is {budget[marker]} s")
    return said


class Durations:
    """One in each process of a run; the controller, or the only process, writes and judges."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker = hasattr(config, "workerinput")
        self.since = self.looked = 0.0
        self.slowness = 1.0  # of this process now, against `PACE`
        self.collected: dict[str, int] = defaultdict(int)
        self.rows: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Before any are deselected."""
        for item in items:
            self.collected[marker_of(item)] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        if time.monotonic() - self.looked > _EVERY:
            begin = time.process_time()
            _work()
            # A virtual machine's clock may stand still meanwhile, and no time is no pace.
            self.slowness = (time.process_time() - begin) / PACE or self.slowness
            self.looked = time.monotonic()
        self.since = cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        report: Any = yield
        now = cpu_seconds()
        report.marker, report.cpu, report.slowness = marker_of(item), (now - self.since) / self.slowness, self.slowness
        self.since = now
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.worker or not hasattr(report, "cpu"):  # what xdist says of a worker that crashed has none
            return
        new = {"test": report.nodeid, "marker": report.marker, "outcome": "passed", "cpu": 0.0, "wall": 0.0}
        row = self.rows.setdefault(report.nodeid, new)
        row["slowness"] = round(report.slowness, 2)
        row["cpu"] += report.cpu
        row["wall"] += report.duration
        if report.outcome != "passed":
            row["outcome"] = report.outcome

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist's: a worker has ended. Each has collected the same tests."""
        told = getattr(node, "workeroutput", {})
        self.collected = told.get("collected", self.collected)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.worker:
            self.config.workeroutput["collected"] = dict(self.collected)  # type: ignore[attr-defined]
        elif self.rows:
            self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        tests: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows.values():
            tests[row["marker"]].append(row | {name: round(row[name], 3) for name in ("cpu", "wall")})
        whole = {m: rows for m, rows in tests.items() if self._all_of_them() and len(rows) == self.collected.get(m)}
        FOLDER.mkdir(exist_ok=True)
        for marker, rows in whole.items():
            _write(f"test-durations-{marker}.jsonl", rows)
        if rest := [row for marker, rows in tests.items() if marker not in whole for row in rows]:
            _write("test-durations-part.jsonl", rest)  # not over what a whole run has measured
        self.seconds = {marker: sum(row["cpu"] for row in rows) for marker, rows in tests.items()}
        done = {marker: self.seconds[marker] for marker in whole if not session.testsfailed}
        self.faults = exceeded(done, tomllib.loads(BUDGET.read_text()))
        if self.faults and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _all_of_them(self) -> bool:
        """Whether nothing but a marker chose the tests."""
        option = self.config.option
        chosen = (option.keyword, option.deselect, option.ignore, getattr(option, "lf", False))
        return self.config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(chosen)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.rows:
            return
        taken = ", ".join(f"{marker} {seconds:.0f} s" for marker, seconds in sorted(self.seconds.items()))
        slowness = sum(row["slowness"] for row in self.rows.values()) / len(self.rows)
        terminalreporter.write_line(
            f"CPU time by marker: {taken}, as on a calm machine (here it was {slowness:.2f} of that)"
        )
        for fault in self.faults:
            terminalreporter.write_line(f"over budget: {fault}", red=True)


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    """The tests that took longest first."""
    rows = sorted(rows, key=lambda row: -row["cpu"])
    part = FOLDER / f".{name}.{os.getpid()}"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(FOLDER / name)

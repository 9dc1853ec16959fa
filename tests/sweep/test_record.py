"""`--status` of a line that ran: its cells come from sweep.json, and only as long as the line still means them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from alphapo_cli.storage.checksums import sealed

ALPHA = "objective.shape.alpha"


@pytest.fixture
def line(tiny):
    return ("sweep", "alpha", f"{ALPHA}=1,0", *tiny, "trainer.max_steps=1", "launcher.workers=0")


@pytest.fixture
def unrecorded():
    """Makes a sweep forget the lines that were typed, so that they are composed again."""

    def forget(path):
        record = json.loads((path / "sweep.json").read_text())
        (path / "sweep.json").write_text(json.dumps(sealed(record | {"lines": []})))

    return forget


@pytest.mark.slow
def test_a_recorded_line_is_not_composed_and_the_table_is_the_same(alphapo, line, tmp_path, shared_cache, unrecorded):
    from tests.conftest import environment

    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    looked = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "alphapo_cli", *line, "--status"],
        cwd=tmp_path, env=environment(shared_cache), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert looked.returncode == 0
    assert {name for name in ("hydra", "omegaconf", "torch", "numpy") if f"| {name}\n" in looked.stderr} == set()
    unrecorded(ran.path)
    composed = alphapo(*line, "--status")
    assert composed.out == looked.stdout
    assert "composed anew" in composed.err
    # In the order of the line: 1 before 0.
    rows = [row.split("│")[2].strip() for row in looked.stdout.splitlines() if f"{ALPHA}=" in row]
    assert rows == [f"{ALPHA}=1", f"{ALPHA}=0"]


@pytest.mark.slow
def test_another_line_and_another_place_are_looked_at_for_themselves(alphapo, line, tmp_path):
    alphapo(*line)
    more = alphapo(*[text.replace("=1,0", "=1,0,2") for text in line], "--status")
    assert (more.out.count("complete"), more.out.count("pending")) == (2, 1)
    elsewhere = alphapo(*line, "--out", "elsewhere", "--status")
    assert elsewhere.out.count("pending") == 2
    wrong = alphapo(*line, "objective.shape.alhpa=2", "--status")
    assert wrong.code == 2


@pytest.mark.slow
def test_yaml_that_changed_since_makes_other_cells(alphapo, forked, tiny, tmp_path, shared_cache):
    """The same line under an edited file of the user's own means cells that have not been run."""
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    file = own / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\nobjective:\n  beta: 2\n")
    line = ("sweep", f"{ALPHA}=0,1", "experiment=mine", *tiny, "trainer.max_steps=1", "launcher.workers=0")
    ran = alphapo(*line, "--config-dir", str(own))
    assert ran.code == 0, ran.err
    same = alphapo(*line, "--config-dir", str(own), "--status")
    assert ("composed anew" in same.err, same.out.count("complete")) == (False, 2)
    file.write_text("# @package _global_\nobjective:\n  beta: 3\n")
    os.utime(file, (0, 0))  # as an editor that keeps no time of change might leave it
    # In a process of its own: this one remembers what it has read.
    edited = forked(*line, "--config-dir", str(own), "--status", cache=shared_cache)
    assert edited.out.count("pending") == 2


@pytest.mark.slow
def test_an_outcome_of_other_answers_is_not_this_lines(alphapo, line, tmp_path):
    """A recorded line with a judge: when a file that it names changes, the cells count as not evaluated."""
    asked = ("generation=transformers", "generation.max_new_tokens=4", "prompts.limit=4", "statistics.bootstrap=10")
    first = alphapo(*line, *asked, "judge=glassbox")
    assert first.code == 0, first.err
    cell = json.loads((first.path / "summary.json").read_text())["cells"][0]["id"]
    reference = tmp_path / "reference.json"
    reference.write_bytes((first.path / "cells" / cell / "generate" / "model_outputs.json").read_bytes())
    judged = (*line, *asked, "judge=glassbox", "--reference", "reference.json")
    assert alphapo(*judged).code == 0
    looked = alphapo(*judged, "--status")
    assert "composed anew" not in looked.err
    assert (looked.out.count("complete"), "not evaluated" in looked.out) == (2, False)
    reference.write_text(reference.read_text().replace("\n", "\n "))
    changed = alphapo(*judged, "--status")
    assert "composed anew" not in changed.err
    assert changed.out.count("not evaluated") == 2
    reference.unlink()
    assert alphapo(*judged, "--status").code == 2


def test_a_cell_that_another_process_evaluates_is_waited_for(tmp_path, monkeypatch):
    """It is trained, but over for this line only when its outcome is there: it is asked for again until then."""
    from types import SimpleNamespace

    from alphapo_cli.launch import engine
    from alphapo_cli.launch.launchers.launcher import Ended
    from alphapo_cli.sweep.directory import SweepDirectory

    monkeypatch.setattr(engine, "LOOK", 0.0)
    directory, plan = SweepDirectory(tmp_path), SimpleNamespace(key="this")
    run = directory.cell("a").path
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "summary.json").write_text('{"state": "complete"}')
    asked = []

    class Launcher:
        def start(self, jobs):
            asked.extend(jobs)

        def wait(self, seconds):
            if len(asked) < 3:
                return [Ended(asked[-1], "busy")]
            (run / "outcome.json").write_text('{"key": "this"}')
            return [Ended(asked[-1], "complete")]

    one = engine.SweepEngine(directory, Launcher(), engine.Policy(), lambda ended: None, lambda: None)
    cell: Any = SimpleNamespace(id="a", overrides=("seed=0",), cfg=None)
    (ended,) = one.run([cell], plan)
    assert (ended.state, len(asked)) == ("complete", 3)


@pytest.mark.parametrize(
    "damaged", ["text", {"cells": {}}, {"key": "KEY", "cells": 3}, {"key": "KEY", "cells": {"x": 1}, "plan": 7}]
)
def test_a_damaged_line_is_as_one_that_was_never_typed(damaged, tmp_path):
    from alphapo_cli.sweep.record import Typed, recorded

    typed = Typed(("alpha",))
    if isinstance(damaged, dict) and "key" in damaged:
        damaged["key"] = typed.key
    record: dict[str, Any] = {"name": "alpha", "hash": "0", "cells": [], "lines": [damaged]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert recorded(typed, tmp_path) is None
    record["lines"].append(typed.record({"x": ["seed=1"]}, None))
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert recorded(typed, tmp_path).cells == {"x": ["seed=1"]}


@pytest.mark.slow
def test_damaged_sweep_json_is_put_right_or_refused_in_one_line(alphapo, line):
    """Lines are left out; cells that another line overwrote come back; a file that is no record is not overwritten."""
    ran = alphapo(*line)
    file = ran.path / "sweep.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(sealed(record | {"cells": record["cells"][:1], "lines": [{}], "outcome": 5})))
    again = alphapo(*line)
    assert again.code == 0, again.err
    assert json.loads(file.read_text())["cells"] == record["cells"]
    assert len(json.loads((ran.path / "summary.json").read_text())["cells"]) == 2
    for broken in ("", "{", "[]", '{"cells": [{}]}', json.dumps(record | {"numerics": 1})):
        file.write_text(broken)
        refused = alphapo(*line)
        assert refused.code == 2
        assert "sweep.json: cannot be read" in refused.fault
        assert file.read_text() == broken


@pytest.mark.slow
def test_a_cell_with_a_damaged_summary_is_named_with_a_way_on_that_a_sweep_has(alphapo, line):
    ran = alphapo(*line)
    folder = next(ran.path.rglob("metrics.jsonl")).parent
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "summary.json").write_text("{")
    refused = alphapo(*line)
    assert refused.code == 2
    assert f"{folder.name}/summary.json is damaged" in refused.fault
    assert f"remove {folder.relative_to(ran.path.parents[1])} to train" in refused.fault
    assert "--replace" not in refused.fault
    shutil.rmtree(folder)
    assert alphapo(*line).code == 0
    assert (folder / "metrics.jsonl").read_text() == whole


def test_cells_are_in_the_sweep(alphapo, trained, tmp_path):
    """A record that somebody else wrote names a directory elsewhere: nothing is read, locked or removed there."""
    run = shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "s" / "cells").mkdir(parents=True)
    cell = {"id": "../../run", "point": {}, "overrides": ["seed=0"]}
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"cells": [cell], "keys": []}))
    before = sorted(run.rglob("*"))
    assert "damaged" in alphapo("ls", "s").out
    assert alphapo("report", "s", "--no-pictures").code == 2
    assert alphapo("rm", "s", "--yes").code == 0
    assert sorted(run.rglob("*")) == before

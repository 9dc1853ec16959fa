"""`alphapo sweep` from the outside: its directory, what a second line does, and what survives a failure or a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from alphapo_cli.tracking import metrics
from tests import wandb_file

ALPHA = "objective.shape.alpha"
HERE = "launcher.workers=0"  # cells in this process: no seconds of imports a sweep


@pytest.fixture(scope="session")
def swept(tmp_path_factory, shared_cache):
    """One complete sweep with W&B and pictures. Read it, never write to it."""
    from tests.conftest import TINY, run_here

    folder = tmp_path_factory.mktemp("swept")
    line = ("sweep", "alpha", f"{ALPHA}=0,1", *TINY, HERE, "trainer.max_steps=2", "--json", "result.json")
    ran = run_here(line, folder, shared_cache)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture
def small(tiny):
    """Overrides of a cell that takes half a second."""
    return (*tiny, HERE, "trainer.max_steps=2")


def copied(ran, folder):
    """The directory of `ran` as it would be had the line been typed in `folder`."""
    shutil.copytree(ran.path, folder / "runs" / ran.path.name)
    return dataclasses.replace(ran, out=f"{folder / 'runs' / ran.path.name}\n")


def summary(ran):
    return json.loads((ran.path / "summary.json").read_text())


def answers(run, name):
    return [row["output"] for row in json.loads((run / "samples" / f"{name}.json").read_text())]


def states(ran):
    return {c["overrides"][0].partition("=")[2]: c["state"] for c in summary(ran)["cells"]}


class TestDirectory:
    def test_files(self, swept):
        names = {p.name for p in swept.path.iterdir()}
        assert names == {
            "sweep.json", "cells", "summary.json", "displacement.png", "outcome.png", "reward_shape.png", "wandb",
            "report.html", "report",
        }  # fmt: skip
        figures = {p.stem for p in (swept.path / "report").iterdir() if p.suffix == ".svg"}
        assert figures == {
            "outcome", "displacement", "trajectory", "quadrants", "gradient_weight", "kl", "length", "reward_shape",
            "gradient_field", "frontier",
        }  # fmt: skip
        for picture in ("displacement.png", "outcome.png", "reward_shape.png"):
            assert (swept.path / picture).read_bytes().startswith(b"\x89PNG")

    def test_its_place(self, swept):
        record = json.loads((swept.path / "sweep.json").read_text())
        assert swept.path.name == f"alpha-{record['hash']}"
        assert swept.path.parent.name == "runs"
        assert (record["name"], record["keys"]) == ("alpha", [ALPHA])
        assert ALPHA not in record["base"]
        assert record["base"]["objective.beta"] == 2.5

    def test_every_cell_is_a_run_directory(self, swept):
        cells = summary(swept)["cells"]
        assert sorted(p.name for p in (swept.path / "cells").iterdir()) == sorted(c["id"] for c in cells)
        for cell in cells:
            names = {p.name for p in (swept.path / "cells" / cell["id"]).iterdir()}
            assert {
                "config.yaml",
                "manifest.json",
                "metrics.jsonl",
                "summary.json",
                "model",
                "curves.png",
                "report.html",
            } <= names

    def test_summary(self, swept):
        found, every = summary(swept), metrics.keys()
        assert list(found) == ["name", "hash", "cells", "best", "collapsed", "verdict", "checksum"]
        assert [c["overrides"] for c in found["cells"]] == [[f"{ALPHA}=0"], [f"{ALPHA}=1"]]
        for cell in found["cells"]:
            assert list(cell) == ["id", "overrides", "state", "reason", "metrics", "cost"]
            assert (cell["state"], cell["reason"]) == ("complete", None)
            others = (
                "train/", "eval/", "samples/refusals", "foretold/", "ranking/idealised", *metrics.MEASURE
            )  # fmt: skip
            assert set(cell["metrics"]) == {k for k in every if not k.startswith(others)}

    def test_best_is_the_cell_with_the_highest_true_win_rate(self, swept):
        found = summary(swept)
        best, rates = found["best"], [c["metrics"]["glassbox/true_win_rate"] for c in found["cells"]]
        assert list(best) == [
            "id", "overrides", "metric", "value", "value_interval", "value_over", "advantage_over_alpha_0", "interval", "distinguishable",
            "verdict", "interval_over", "seeds", "seeds_needed",
        ]  # fmt: skip
        assert (best["metric"], best["value"]) == ("glassbox/true_win_rate", max(rates))
        assert best["id"] == found["cells"][rates.index(max(rates))]["id"]
        if rates[0] == max(rates):  # cells are in the order of the line, alpha = 0 first
            assert (best["verdict"], best["advantage_over_alpha_0"]) == ("alpha = 0 itself", None)
            return
        assert best["advantage_over_alpha_0"] == pytest.approx(max(rates) - rates[0])
        low, high = best["interval"]
        assert low <= best["advantage_over_alpha_0"] <= high
        # One seed each: a difference of the trained models decides nothing.
        apart = low > 0 or high < 0
        assert best["verdict"] == ("undecided" if apart else "not distinguishable")
        assert best["distinguishable"] in (None, False)

    def test_the_result_object(self, swept):
        result = json.loads((swept.path.parent.parent / "result.json").read_text())
        assert result == {"path": str(swept.path), **summary(swept)}

    def test_what_is_printed(self, swept):
        out = swept.out.splitlines()
        assert out[0] == str(swept.path)
        assert "true win rate" in swept.out
        assert any(line.startswith("Best true win rate") and "alpha = 0" in line for line in out)
        assert f"displacement: {swept.path}/displacement.png" in out
        assert f"outcome: {swept.path}/outcome.png" in out
        assert f"report: {swept.path}/report.html" in out

    def test_wandb_has_one_group_with_the_cells_and_the_pictures(self, swept):
        group = swept.path.name
        for cell in summary(swept)["cells"]:
            (file,) = wandb_file.live_files(swept.path / "cells" / cell["id"])
            run = wandb_file.read(file)
            assert (run.group, run.job_type, run.exit_code) == (group, "cell", 0)
            assert [row["_step"] for row in run.history if "displacement/chosen" in row] == [0, 2]
        (file,) = wandb_file.live_files(swept.path)
        whole = wandb_file.read(file)
        assert (whole.group, whole.job_type) == (group, "sweep")
        logged = {key for row in whole.history for key in row}
        assert {"displacement", "outcome", "reward_shape", "frontier", "cells"} <= logged
        (image,) = [row["frontier"]["path"] for row in whole.history if "frontier" in row]
        assert (file.parent / "files" / image).read_bytes() == (swept.path / "report" / "frontier.png").read_bytes()


def test_a_cell_is_what_a_single_run_is(swept, alphapo, small):
    """Warm and shared in one process, or alone: the same bytes."""
    cell = next(c for c in summary(swept)["cells"] if c["overrides"] == [f"{ALPHA}=1"])
    alone = alphapo("train", f"{ALPHA}=1", *(text for text in small if text != HERE))
    theirs = swept.path / "cells" / cell["id"]
    assert (alone.path / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    assert json.loads((alone.path / "summary.json").read_text())["metrics"] == cell["metrics"]
    name = "model/model.safetensors"
    assert (alone.path / name).read_bytes() == (theirs / name).read_bytes()
    for name in ("reference", "step-0", "step-2"):
        assert answers(alone.path, name) == answers(theirs, name)


class TestAnotherLine:
    @pytest.fixture
    def first(self, swept, tmp_path):
        return copied(swept, tmp_path)

    def test_the_same_again_touches_nothing_but_the_summary(self, first, alphapo, small, snapshot):
        before, said = snapshot(first.path), summary(first)
        again = alphapo("sweep", "alpha", f"{ALPHA}=0,1", *small)
        assert (again.code, again.path) == (0, first.path)
        # What there is to say of the result, and no work.
        assert all(line.startswith(("verdict: ", "next: ", "note: Mean h'")) for line in again.err.splitlines())
        after = snapshot(first.path)
        assert {k for k in before | after if before.get(k) != after.get(k)} <= {"summary.json"}
        assert summary(again) == said
        assert "Best true win rate" in again.out

    @pytest.mark.slow
    def test_more_values_are_more_cells_of_the_same(self, first, alphapo, small, snapshot):
        before = snapshot(first.path / "cells")
        more = alphapo("sweep", "alpha", f"{ALPHA}=0,0.5,1", *small)
        assert (more.code, more.path) == (0, first.path)
        assert states(more) == {"0": "complete", "0.5": "complete", "1": "complete"}
        after = snapshot(first.path / "cells")
        assert {k: v for k, v in after.items() if k in before} == before
        # Fewer values leave the cells of earlier lines in place, too.
        fewer = alphapo("sweep", "alpha", f"{ALPHA}=0.5,1", *small)
        assert states(fewer) == states(more)

    @pytest.mark.slow
    def test_another_base_is_another_sweep_and_says_why(self, first, alphapo, small):
        other = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, "objective.beta=1.5")
        assert other.code == 0
        assert other.path != first.path
        (note,) = [line for line in other.err.splitlines() if "another sweep" in line]
        assert note == f"another sweep than {first.path.name} (differs in: objective.beta)"

    @pytest.mark.slow
    def test_another_key_is_another_sweep(self, first, alphapo, small):
        other = alphapo("sweep", "alpha", f"{ALPHA}=0", "seed=3,4", *small)
        assert other.path != first.path
        (note,) = [line for line in other.err.splitlines() if "another sweep" in line]
        assert "swept seed" in note

    def test_out_of_another_sweep_is_refused(self, first, alphapo, small, snapshot):
        before = snapshot(first.path)
        refused = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, "seed=9", "--out", str(first.path))
        assert refused.code == 2
        assert "holds another sweep (differs in: seed: 0 there, 9 here)" in refused.fault
        assert snapshot(first.path) == before

    def test_out_names_the_directory(self, alphapo, small, tmp_path):
        ran = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, "--out", "mine/here")
        assert (ran.code, ran.path) == (0, tmp_path / "mine" / "here")
        assert not (tmp_path / "runs").exists()
        assert summary(ran)["best"]["verdict"] == "alpha = 0 itself"

    def test_out_of_something_else_is_refused(self, alphapo, small, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        refused = alphapo("sweep", "alpha", *small, "--out", "mine")
        assert (refused.code, [p.name for p in (tmp_path / "mine").iterdir()]) == (2, ["thesis.tex"])
        assert "not a sweep" in refused.fault

    def test_what_a_kill_before_the_first_cell_leaves_is_no_hindrance(self, alphapo, small, tmp_path):
        (tmp_path / "mine" / "logs").mkdir(parents=True)
        (tmp_path / "mine" / ".sweep.json.77.12ab34cd.tmp").write_text('{"na')
        ran = alphapo("sweep", "alpha", f"{ALPHA}=0", *small, "--out", "mine")
        assert (ran.code, states(ran)) == (0, {"0": "complete"})


@pytest.fixture(scope="module")
def diverging(pairs):
    """A sweep of three learning rates, the second of which diverges."""
    from tests.conftest import BARE, SCRATCH

    steps = ("trainer.max_steps=12", "trainer.warmup_ratio=0", "trainer.max_grad_norm=0", "probe.every=12")
    data = ("data=jsonl", f"data.path={pairs['plain']}")
    return ("sweep", "objective=cpo", HERE, *SCRATCH, *BARE, *data, *steps, "trainer.learning_rate=0.001,1e30,0.002")


@pytest.fixture(scope="module")
def failed(diverging, shared_cache, tmp_path_factory):
    from tests.conftest import run_here

    return run_here(diverging, tmp_path_factory.mktemp("failed"), shared_cache)


class TestFailure:
    @pytest.mark.slow
    def test_a_failed_cell_does_not_lose_the_others(self, failed):
        assert failed.code == 1
        assert states(failed) == {"0.001": "complete", "1e+30": "failed", "0.002": "complete"}
        last = failed.err.splitlines()[-1]
        assert last.startswith("alphapo: 1 of 3 cells failed, first trainer.learning_rate=1e+30: the loss is ")
        cell = next(c for c in summary(failed)["cells"] if c["state"] == "failed")
        assert cell["reason"].startswith("the loss is ")
        assert cell["reason"] in last

    def test_without_the_embedded_world_the_outcome_is_the_accuracy(self, failed):
        best = summary(failed)["best"]
        assert best["metric"] == "rewards/accuracies"
        assert (best["advantage_over_alpha_0"], best["distinguishable"]) == (None, None)

    def test_the_same_line_tries_it_again_and_leaves_the_others(self, failed, diverging, alphapo, snapshot, tmp_path):
        first = copied(failed, tmp_path)
        done = [c["id"] for c in summary(first)["cells"] if c["state"] == "complete"]
        before = [snapshot(first.path / "cells" / name) for name in done]
        second = alphapo(*diverging)
        assert (second.code, second.path) == (1, first.path)
        assert "3 cells, 2 of them complete" in second.err
        assert [snapshot(first.path / "cells" / name) for name in done] == before


@pytest.mark.slow
def test_data_that_has_changed_under_complete_cells_is_said(alphapo, pairs, tmp_path):
    from tests.conftest import BARE, SCRATCH

    shutil.copy(pairs["dialogue"], tmp_path / "own.jsonl")
    line = ("sweep", HERE, *SCRATCH, *BARE, "data=jsonl", "data.path=own.jsonl", "trainer.max_steps=1")
    assert alphapo(*line, "seed=0,1").code == 0
    rows = (tmp_path / "own.jsonl").read_text()
    (tmp_path / "own.jsonl").write_text(rows.replace("carpet", "engine"))
    more = alphapo(*line, "seed=0,1,2")
    assert more.code == 0
    (warning,) = [text for text in more.err.splitlines() if "warning" in text]
    assert "data.path holds other data now than 2 of the complete cells" in warning
    assert "--out" in warning


class TestInterrupted:
    @pytest.mark.slow
    def test_then_the_same_line_completes(self, alphapo, tiny, tmp_path, interrupt, snapshot):
        line = (
            "sweep",
            "alpha",
            f"{ALPHA}=0,1,2",
            *tiny,
            HERE,
            "trainer.max_steps=16",
            "probe.every=8",
            "probe.samples=2",
        )

        def in_the_second():
            cells = list(tmp_path.glob("runs/alpha-*/cells/*"))
            done = [c for c in cells if '"complete"' in _read(c / "summary.json")]
            under_way = [c for c in cells if c not in done and _read(c / "metrics.jsonl").count("\n") >= 2]
            return len(done) == 1 and len(under_way) == 1

        interrupt(in_the_second)
        stopped = alphapo(*line)
        assert stopped.code == 130
        assert (
            stopped.err.splitlines()[-1]
            == "alphapo: interrupted; 1 of 3 cells of this line done; the same line goes on"
        )
        assert states(stopped) == {"0": "complete", "1": "interrupted", "2": "pending"}
        (done,) = [c["id"] for c in summary(stopped)["cells"] if c["state"] == "complete"]
        before = snapshot(stopped.path / "cells" / done)
        again = alphapo(*line)
        assert (again.code, again.path) == (0, stopped.path)
        assert set(states(again).values()) == {"complete"}
        assert snapshot(stopped.path / "cells" / done) == before


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_seeds_are_averaged(alphapo, small):
    ran = alphapo("sweep", "alpha", f"{ALPHA}=0,1", "seed=0,1", *small)
    assert ran.code == 0
    found = summary(ran)
    rates = {tuple(c["overrides"]): c["metrics"]["glassbox/true_win_rate"] for c in found["cells"]}
    assert len(rates) == 4
    means = [(rates[f"{ALPHA}={a}", "seed=0"] + rates[f"{ALPHA}={a}", "seed=1"]) / 2 for a in (0, 1)]
    assert found["best"]["value"] == pytest.approx(max(means))
    drawn = {tuple(c["overrides"]): answers(ran.path / "cells" / c["id"], "reference") for c in found["cells"]}
    assert drawn[f"{ALPHA}=0", "seed=0"] == drawn[f"{ALPHA}=1", "seed=0"]
    assert drawn[f"{ALPHA}=0", "seed=0"] != drawn[f"{ALPHA}=0", "seed=1"]


def test_print_config_runs_nothing(alphapo, tmp_path):
    import yaml

    ran = alphapo("sweep", "alpha", f"{ALPHA}=0,1", "--print-config")
    assert ran.code == 0
    assert ran.out.startswith(f"# 2 cells over {ALPHA}: {ALPHA}=0; {ALPHA}=1\n")
    assert yaml.safe_load(ran.out)["objective"]["shape"]["alpha"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_alpha_sweep_with_the_real_base_shows_displacement(alphapo, real_cache):
    """At alpha = 0 of the ratio convention (DPO) far more chosen answers fall than at alpha = 0.5."""
    ran = alphapo(
        "sweep", "alpha_ratio", f"{ALPHA}=0,0.5", "tracking.mode=disabled", "tracking.pictures=false", cache=real_cache
    )
    assert ran.code == 0, ran.err
    down = [c["metrics"]["displacement/share_chosen_down"] for c in summary(ran)["cells"]]
    assert down[0] - down[1] > 0.2

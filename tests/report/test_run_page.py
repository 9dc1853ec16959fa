"""The page of a run, and `alphapo report` of several: what they say, and what they do with odd and damaged directories."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from alphapo_cli.report.runs import find_runs, read_runs
from alphapo_cli.report.write import beside, write_run, write_runs
from alphapo_cli.runs.title import title
from alphapo_cli.runs.verdict import UNMEASURED
from tests.crafted_sweep import ALPHA, craft, shape_rows
from tests.report.test_report import EVIL, Page, alphapo, data_of, table

BETTER = {
    "outcome": "better", "sentences": ["better than the start: true win rate 70 % [64, 75], n = 256"], "win_rate": 0.7,
    "interval": [0.64, 0.75], "n": 256, "best_step": 4, "clipped": 0.25,
}  # fmt: skip


def change(cell, made):
    made.win, made.fall = 0.6 - 0.1 * cell.point[ALPHA], -0.2 - 0.1 * abs(cell.point[ALPHA])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three alphas, two seeds. Read it, never write to it."""
    return craft(tmp_path_factory.mktemp("sweeps") / "alpha", f"{ALPHA}=-1,0,1", "seed=0,1", change=change)


@pytest.fixture
def run(sweep, tmp_path):
    """A run that may be changed: alpha = -1, seed 0."""
    return shutil.copytree(sorted((sweep / "cells").iterdir())[0], tmp_path / "dpo-12345678")


def changed(folder, file="summary.json", **values):
    path = folder / file
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **values}))
    return folder


def text_of(html):
    return " ".join(Page(html.read_text()).text.split())


class TestOneRun:
    def test_it_says_what_the_run_is_and_what_came_of_it(self, run):
        html = write_run(changed(run, verdict=BETTER, data={"probe_pairs": 64}))
        changed(run, "manifest.json", data={"probe_pairs": 64})
        html = write_run(run)
        assert html == run / "report.html"
        page = Page(html.read_text())
        text = " ".join(page.text.split())
        name = title({**find_runs([run])[0].settings()})
        assert name in text
        assert "beta 2.5, learning rate 0.0008, the embedded world's model" in name
        assert "Better than the start: true win rate 70 % [64, 75], n = 256." in text
        assert "the gradient was clipped at 25 % of" in text
        down = json.loads((run / "summary.json").read_text())["metrics"]["displacement/share_chosen_down"]
        assert re.search(rf"chosen down{100 * down:.0f} % \[\d+, \d+\], n = 64", text)
        for heading in ("Displacement", "True win rate", "Reward margin", "Gradient weight", "Loss",
                        "Distance from the start", "What the models say", "Guards and data", "Settings"):  # fmt: skip
            assert heading in text, heading
        assert f"alphapo report {run}" in page.commands

    def test_a_run_of_several_processes_was_typed_with_torchrun(self, run):
        words = ["/bin/alphapo", "train", "sharding.mode=fsdp"]
        page = Page(write_run(changed(run, "manifest.json", command=words, processes=2)).read_text())
        assert "torchrun --nproc-per-node 2 -m alphapo_cli train sharding.mode=fsdp" in page.commands
        alone = Page(write_run(changed(run, "manifest.json", command=words[:2], processes=1)).read_text())
        assert "alphapo train" in alone.commands

    def test_its_figures_are_those_that_were_measured_and_its_curves_the_record(self, run):
        data = data_of(write_run(changed(run, verdict=BETTER)).read_text())
        (cell,) = data["cells"]
        steps, values = cell["curves"]["displacement/chosen"]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert data["grids"][steps] == [row["step"] for row in rows]
        assert values == pytest.approx([row["displacement/chosen"] for row in rows], rel=1e-4)
        assert data["marks"] == [{"step": 4, "word": "best win rate: step 4"}]
        assert len(data["samples"]["start"]) == len(data["samples"]["answers"]["0"]) == len(data["samples"]["prompts"])

    def test_a_stop_by_a_guard_is_told_with_its_step(self, run):
        reason = "guard.max_chosen_drop=0.1 exceeded at step 8"
        html = write_run(changed(run, verdict=BETTER, state="stopped", reason=reason))
        text = text_of(html)
        assert text.count(reason) == 2  # at the head, and under the guards
        assert "better, stopped by a guard" in text
        assert {"step": 8, "word": "stopped: step 8"} in data_of(html.read_text())["marks"]

    def test_beside_an_evaluation_nobody_says_that_no_win_rate_was_taken(self, run):
        unmeasured = {
            **BETTER,
            "outcome": "not measured",
            "sentences": [UNMEASURED, "no curve warns"],
            "win_rate": None,
        }
        assert "no win rate was taken" in text_of(write_run(changed(run, verdict=unmeasured)))
        judged = {"outcome": "worse", "sentence": "worse than REF: win rate 31 % [25, 37], n = 256, against REF",
                  "interval": [0.25, 0.37]}  # fmt: skip
        changed(run, "outcome.json", key="k", metrics={"eval/win_rate": 0.31, "eval/n_total": 256}, verdict=judged)
        text = text_of(write_run(run))
        assert "no win rate was taken" not in text
        assert "Worse than REF: win rate 31 % [25, 37], n = 256, against REF." in text
        assert "No curve warns." in text

    def test_every_interval_has_its_confidence_and_what_it_is_over(self, run):
        """Of an evaluation those that were configured; its rows over training, too."""
        judged = {"outcome": "worse", "sentence": "worse", "interval": [0.25, 0.37]}
        metrics, over = (
            {"eval/win_rate": 0.31, "eval/n_total": 256},
            {"confidence": 0.9, "intervals_over": "instructions"},
        )
        rows = [{"step": 4, "fraction": 0.5, "metrics": metrics, "intervals": {"eval/win_rate": [0.25, 0.37]}, **over}]
        changed(run, "outcome.json", key="k", metrics=metrics, verdict=judged, over_training=rows, **over)
        html = write_run(changed(run, verdict=BETTER)).read_text()
        assert "With its interval, 90 % over instructions." in html
        assert "With its interval, 95 % over prompts." in html  # the true win rate's
        assert "intervals are 90 % over instructions. KL" in text_of(run / "report.html")
        assert '"95 % interval over prompts" : "10 to 90 % of pairs"' in html

    def test_texts_of_a_run_are_text(self, run):
        rows = json.loads((run / "samples" / "step-8.json").read_text())
        (run / "samples" / "step-8.json").write_text(json.dumps([{**row, "output": EVIL} for row in rows]))
        html = write_run(changed(run, verdict={**BETTER, "sentences": [EVIL]}, state="failed", reason=EVIL)).read_text()
        found = Page(html)
        assert [a for t, a in found.tags if t == "img"] == []
        assert sum(t == "script" for t, _ in found.tags) == 2
        assert "<script>document" not in html

    @pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "manifest.json", "samples"])
    def test_what_is_missing_leaves_the_rest(self, run, missing):
        path = run / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if missing == "manifest.json":  # then it is nobody's run
            ran = alphapo(run.parent, "report", run.name)
            assert (ran.code, ran.out) == (2, "")
            assert "is the directory of neither a run nor a sweep" in ran.err or "is not a sweep's directory" in ran.err
            return
        assert "Settings" in text_of(write_run(run))


class TestSeveral:
    def test_runs_are_named_by_what_tells_them_apart(self, sweep, tmp_path):
        cells = find_runs([sweep])
        assert len(cells) == 6
        shown = read_runs(cells, tmp_path)
        assert {p.label for p in shown.points} == {f"alpha={a} seed={s}" for a in ("-1", "0", "1") for s in (0, 1)}
        assert shown.name == "6 runs, by alpha and seed"
        assert [len(p.members) for p in shown.points] == [1] * 6  # nothing is averaged

    def test_equal_runs_are_named_by_their_directories(self, run, tmp_path):
        other = shutil.copytree(run, tmp_path / "again")
        assert [p.label for p in read_runs(find_runs([run, other]), tmp_path).points] == [
            "run=dpo-12345678", "run=again",
        ]  # fmt: skip

    def test_the_command_from_outside(self, sweep, tmp_path):
        runs = [str(cell) for cell in sorted((sweep / "cells").iterdir())[:3]]
        ran = alphapo(tmp_path, "report", *runs, "--out", "side by side", "--json", "-")
        assert ran.code == 0, ran.err
        assert ran.path == tmp_path / "side by side" / "report.html"
        page = Page(ran.path.read_text())
        text = " ".join(page.text.split())
        assert "Outcomes" in text
        assert "What differs" in text
        assert "objective.shape.alpha" in text
        assert page.commands[-1].startswith("alphapo report ")
        assert len(table(tmp_path / "side by side" / "report" / "cells.csv")) == 3
        data = data_of(ran.path.read_text())
        assert len(data["points"]) == len(data["cells"]) == 3

    def test_without_out_it_lies_beside_the_first_and_never_in_it(self, run, tmp_path):
        other = shutil.copytree(run, tmp_path / "again")
        target = beside([run, other])
        assert target.parent == run.parent
        assert beside([other, run]) != target
        assert write_runs([run, other], target).html.is_file()
        assert not (run / "report.html").exists()

    def test_a_run_and_a_sweep_together(self, sweep, run, tmp_path):
        assert len(find_runs([run, sweep, run])) == 7
        other = tmp_path / "nothing"
        other.mkdir()
        ran = alphapo(tmp_path, "report", str(run), str(other))
        assert (ran.code, ran.out) == (2, "")
        assert "nothing is the directory of neither a run nor a sweep" in ran.err


class TestTitle:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"objective.name": "dpo", "objective.shape.name": "identity", "objective.beta": 0.1,
              "trainer.learning_rate": 7e-7, "model.path": "/models/Llama-3/"},
             "dpo, beta 0.1, learning rate 7e-07, Llama-3, n = 256 held-out pairs"),
            ({"objective.name": "alphapo", "objective.shape.name": "power", "objective.shape.alpha": 0.25,
              "objective.schedule.name": "linear", "objective.schedule.start": -0.5, "objective.schedule.end": 1,
              "model.source": "from_scratch", "model.lora.r": 8},
             "alphapo, alpha linear from -0.5 to 1, a model from random weights, LoRA of rank 8, n = 256 held-out pairs"),
            ({}, "run, n = 256 held-out pairs"),
        ],
    )  # fmt: skip
    def test_words(self, settings, said):
        assert title(settings, 256) == said


class TestRewardShapes:
    def probed(self, folder, **files):
        def change(cell, made):
            made.files = {"probe.jsonl": shape_rows(), **files}

        return craft(folder, f"{ALPHA}=0,1", change=change)

    def test_a_report_makes_them_for_every_cell_of_a_sweep(self, tmp_path):
        sweep = self.probed(tmp_path / "alpha")
        ran = alphapo(tmp_path, "report", str(sweep))
        assert ran.code == 0, ran.err
        assert all((cell / "reward_shape.json").is_file() for cell in (sweep / "cells").iterdir())
        assert (sweep / "report" / "reward_shape.png").is_file()
        assert (sweep / "report" / "gradient_field.svg").is_file()
        shapes = data_of((sweep / "report.html").read_text())["shapes"]
        assert set(shapes) == {"0", "1"}
        assert shapes["1"]["means"][1] == pytest.approx([-1.4, -1.8, -2.2])  # rejected: -1.4 - 0.1 step
        # Weights 1 to 1e-4 against 1 % of beta sigmoid(gamma) = 0.014: the last three of five.
        assert shapes["0"]["saturated"][0][-1] == 0.6
        assert sum(shapes["0"]["counts"]["end"][0]) == 5
        assert "where on the reward's shape the pairs are" in text_of(sweep / "report.html").lower()

    def test_of_one_run_single_answers_and_both_fields_are_shown(self, tmp_path):
        run = sorted((self.probed(tmp_path / "alpha") / "cells").iterdir())[0]
        assert alphapo(tmp_path, "report", str(run)).code == 0
        shape = data_of((run / "report.html").read_text())["shapes"]["0"]
        assert set(shape["field"]["by"]) == {"s", "p"}
        assert [len(side[0]) for side in shape["dots"][1]] == [5, 5]
        assert "Gradient field, by the probabilities" in text_of(run / "report.html")

    def test_what_is_left_out_is_said(self, tmp_path):
        def change(cell, made):
            made.files = {"probe.jsonl": shape_rows()}

        sweep = craft(tmp_path / "methods", "objective=sft,r_dpo,dpo", name=None, change=change)
        assert alphapo(tmp_path, "report", str(sweep), "--no-pictures").code == 0
        text = text_of(sweep / "report.html")
        assert "sft: the loss has no preference term, so it pulls at no score." in text
        assert "r_dpo: no gradient field and no saturated share: the loss reads more of a pair" in text
        assert "dpo: no" not in text.replace("r_dpo: no", "")

    def test_a_page_of_files_that_are_not_ours_is_a_page(self, tmp_path):
        """The file's checksum is missing, and what it holds is of another form."""
        foreign = json.dumps({"format": 1, "probe_bytes": len(shape_rows()), "curve": [], "field": {}})
        sweep = self.probed(tmp_path / "alpha", **{"reward_shape.json": foreign})
        html = write_run(sorted((sweep / "cells").iterdir())[0])
        assert data_of(html.read_text())["shapes"] == {}
        assert "No reward shape has been made yet; 'alphapo report' makes it." in text_of(html)


@pytest.mark.parametrize("dataset", ["glassbox", "probe"])
def test_answers_before_training_are_drawn_as_those_after(dataset, run):
    """A real model's: the terminal shows step 0, and the page another draw of the same model."""
    rows = {name: [{"dataset": dataset, "instruction": "q", "output": f"the {name}", "generator": "g"}]
            for name in ("reference", "step-0", "step-8")}  # fmt: skip
    (run / "samples").mkdir(exist_ok=True)
    for name, content in rows.items():
        (run / "samples" / f"{name}.json").write_text(json.dumps(content))
    changed(run, step=8, best=None)
    page = json.dumps(data_of(write_run(run).read_text()))
    assert ("the reference" in page, "the step-0" in page) == (dataset == "glassbox", dataset != "glassbox")

"""`alphapo report` from the outside: its files, what the page says, and what it does with a damaged sweep."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import xml.etree.ElementTree
from html.parser import HTMLParser

import pytest
import yaml

from alphapo_cli.report import page, payload
from alphapo_cli.report.collect import read
from alphapo_cli.report.write import refresh, write_report
from alphapo_cli.sweep.analysis import analyse
from alphapo_cli.sweep.directory import SweepDirectory
from tests.conftest import run_here
from tests.crafted_sweep import ALPHA, craft

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" \u2028'


class Page(HTMLParser):
    """Tags with their attributes, and text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside, self.commands = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "pre"):
            self.inside.append(tag)
        if tag == "pre":
            self.commands.append("")

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside == ["pre"]:
            self.commands[-1] += data
        elif not self.inside:
            self.text += data


def data_of(html):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def refreshed(directory):
    """The report as the end of a sweep leaves it."""
    return refresh(directory, analyse(directory), pictures=False)


def alphapo(cwd, *arguments):
    """The command line; nothing here needs a cache."""
    return run_here(arguments, cwd, cwd / "no-cache")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_alpha(cell, made):
    made.win, made.fall = 0.6 - 0.1 * cell.point[ALPHA], -0.2 - 0.1 * abs(cell.point[ALPHA])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three alphas, two seeds, all complete. Read it, never write to it."""
    return craft(tmp_path_factory.mktemp("sweeps") / "alpha", f"{ALPHA}=-1,0,1", "seed=0,1", change=by_alpha)


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return write_report(SweepDirectory(sweep), tmp_path_factory.mktemp("out"))


@pytest.fixture
def copy(sweep, tmp_path):
    return shutil.copytree(sweep, tmp_path / "copy")


class TestFiles:
    @pytest.mark.slow
    def test_one_page_every_figure_twice_and_three_tables(self, written):
        folder = written.html.parent / "report"
        names = {p.name for p in folder.iterdir()}
        figures = ("outcome", "displacement", "trajectory", "quadrants", "gradient_weight", "kl", "length", "frontier")
        assert names == {f"{f}.{kind}" for f in figures for kind in ("png", "svg")} | {
            "points.csv", "cells.csv", "curves.csv",
        }  # fmt: skip
        for figure in figures:
            assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
            assert xml.etree.ElementTree.parse(folder / f"{figure}.svg").getroot().tag.endswith("svg")

    def test_the_page_refers_to_nothing_outside_itself(self, written):
        html = written.html.read_text()
        found = Page(html)
        for tag, attributes in found.tags:
            assert tag not in ("iframe", "object", "embed", "base", "form", "img"), tag
            assert "src" not in attributes
            assert str(attributes.get("href", "data:,")).startswith("data:")
        assert "url(" not in html.replace("url(#", "")
        assert "@import" not in html
        (policy,) = [a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")

    def test_the_same_sweep_gives_the_same_bytes(self, sweep, written, tmp_path):
        again = write_report(SweepDirectory(sweep), tmp_path, pictures=False)
        assert again.html.read_bytes() == written.html.read_bytes()
        for name in again.csv:
            assert again.csv[name].read_bytes() == written.csv[name].read_bytes()

    @pytest.mark.slow
    def test_thirteen_alphas_three_seeds_and_long_runs_stay_under_a_megabyte(self, tmp_path):
        """Every metric at 300 steps, and answers of 2,000 characters, as a real model has them."""
        steps = tuple(range(300))

        def change(cell, made):
            by_alpha(cell, made)
            made.steps = steps

        path = craft(tmp_path, f"{ALPHA}=range(-1,2.25,0.25)", "seed=0,1,2", change=change)
        for file in path.glob("cells/*/samples/*.json"):
            rows = [{**row, "output": row["output"] + " indeed" * 280} for row in json.loads(file.read_text())]
            file.write_text(json.dumps(rows))
        html = write_report(SweepDirectory(path), pictures=False).html
        assert html.stat().st_size < 1_000_000
        curves = data_of(html.read_text())
        grid, values = curves["cells"][0]["curves"]["displacement/chosen"]
        assert curves["grids"][grid][0] == 0
        assert curves["grids"][grid][-1] == 299
        assert len(values) == len(curves["grids"][grid]) < 300
        assert len(table(path / "report" / "curves.csv")) == 39 * 300  # the CSV has all of it


class TestNumbers:
    def test_curves_are_the_runs_own_rows(self, sweep, written):
        rows = {(r["cell"], int(r["step"])): r for r in table(written.csv["curves"])}
        seen = 0
        for folder in (sweep / "cells").iterdir():
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                theirs = json.loads(line)
                ours = rows[folder.name, theirs["step"]]
                for key, value in theirs.items():
                    assert ours[key] == ("" if value is None else str(value)), key
                    seen += 1
        assert len(rows) == 6 * 3
        assert seen > 1000

    def test_cells(self, sweep, written):
        rows = {r["cell"]: r for r in table(written.csv["cells"])}
        for folder in (sweep / "cells").iterdir():
            summary = json.loads((folder / "summary.json").read_text())
            row = rows[folder.name]
            assert (row["state"], row["step"], row["cost/seconds"]) == ("complete", "8", "12.5")
            for key, value in summary["metrics"].items():
                assert row[key] == ("" if value is None else str(value))

    def test_points_are_means_over_seeds(self, sweep, written):
        cells, points = table(written.csv["cells"]), table(written.csv["points"])
        assert [float(p[ALPHA]) for p in points] == [-1, 0, 1]
        for point in points:
            mine = [float(c["glassbox/true_win_rate"]) for c in cells if c[ALPHA] == point[ALPHA]]
            assert len(mine) == 2
            assert float(point["glassbox/true_win_rate"]) == pytest.approx(sum(mine) / 2)
            assert float(point["outcome_value"]) == pytest.approx(sum(mine) / 2)
            assert float(point["outcome_low"]) < float(point["outcome_value"]) < float(point["outcome_high"])
        zero = points[1]
        assert zero["advantage_over_alpha_0_value"] == ""
        differences = [float(p["outcome_value"]) - float(zero["outcome_value"]) for p in points]
        assert float(points[0]["advantage_over_alpha_0_value"]) == pytest.approx(differences[0])

    def test_the_page_draws_the_same_numbers(self, sweep, written):
        drawn = data_of(written.html.read_text())
        for cell in drawn["cells"]:
            metrics = json.loads((sweep / "cells" / cell["id"] / "summary.json").read_text())["metrics"]
            assert cell["final"]["displacement/chosen"] == pytest.approx(metrics["displacement/chosen"], rel=1e-4)
            grid, values = cell["curves"]["rewards/margins"]
            assert drawn["grids"][grid] == [0, 4, 8]
            assert values == pytest.approx([0.2, 0.7, 1.2])

    def test_thinning_keeps_both_ends_and_the_order(self):
        steps = list(range(0, 1000, 7))
        kept = payload.thinned(steps, 20)
        assert (kept[0], kept[-1], len(kept)) == (0, steps[-1], 20)
        assert kept == sorted(set(kept) & set(steps))
        assert payload.thinned(steps[:20], 20) == steps[:20]


class TestWords:
    def test_the_finding_is_at_the_top(self, written):
        text = " ".join(Page(written.html.read_text()).text.split())
        assert written.sentence in text
        assert text.index(written.sentence) < text.index("What came out")

    def test_every_interval_says_over_what(self, written):
        text = " ".join(Page(written.html.read_text()).text.split())
        assert "each point's own 95 % interval over prompts and seeds" in text
        assert "Paired, over prompts and seeds." in text
        rows = table(written.csv["points"])
        assert {r["outcome_over"] for r in rows} == {"prompts and seeds"}
        assert [r["advantage_over_alpha_0_over"] for r in rows] == ["prompts and seeds", "", "prompts and seeds"]

    def test_where_there_is_no_interval_none_is_announced(self, tmp_path):
        sweep = craft(tmp_path, f"{ALPHA}=0,1", prompts=1)
        html = write_report(SweepDirectory(sweep), pictures=False).html.read_text()
        text = " ".join(Page(html).text.split())
        assert "There are no intervals." in text
        assert "own 95 % interval" not in text
        assert "With its own 95 % interval" not in html

    def test_alpha_0_as_the_best_is_compared_with_nothing(self, tmp_path):
        def change(cell, made):
            made.win = 0.3 if cell.point[ALPHA] else 0.9

        craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1,2", prompts=60, change=change)
        html = write_report(SweepDirectory(tmp_path), pictures=False).html.read_text()
        text = " ".join(Page(html).text.split())
        assert "best: alpha = 0, which the others are compared with" in text
        assert "That is alpha = 0 itself." in text
        assert (data_of(html)["best"], data_of(html)["marked"]) == (0, False)

    def test_one_seed_is_undecided_in_words_and_numbers(self, tmp_path):
        def change(cell, made):
            made.win = 0.9 if cell.point[ALPHA] else 0.3

        found = write_report(SweepDirectory(craft(tmp_path, f"{ALPHA}=0,1", prompts=60, change=change)), pictures=False)
        html = found.html.read_text()
        text = " ".join(Page(html).text.split())
        assert "best: alpha = 1, undecided whether it differs from alpha = 0" in text
        assert "each point's own 95 % interval over prompts." in text  # and no ring
        assert [p["verdict"] for p in data_of(html)["points"]] == [None, "undecided"]
        assert [p["gain_over"] for p in data_of(html)["points"]] == [None, "prompts"]
        assert [r["verdict"] for r in table(found.csv["points"])] == ["", "undecided"]

    def test_configuration_names_what_differs(self, written):
        text = Page(written.html.read_text()).text
        differs = text[text.index("What differs") : text.index("settings that all cells share")]
        assert ALPHA in differs
        assert "trainer.learning_rate" not in differs

    @pytest.mark.slow
    def test_long_values_that_begin_alike_are_points_of_their_own_in_the_pictures(self, tmp_path):
        """By their first 29 characters they would be averaged, as seeds of one another."""
        models = [f"/data/models/llama-3-8b-instruct-sft-$epoch_{n}$" for n in (1, 2)]
        path = craft(tmp_path / "sweep", f"model.path={','.join(models)}", "data=jsonl", name=None)
        written = write_report(SweepDirectory(path))
        svg = written.pictures["outcome"][1].read_text()
        assert all(f"…{model[-29:]}" in svg for model in models)

    def test_commands_as_typed(self, written):
        assert f"alphapo sweep alpha {ALPHA}=-1,0,1 seed=0,1" in Page(written.html.read_text()).commands

    @pytest.mark.parametrize(
        "line",
        [(f"{ALPHA}=0.25", "seed=3"), ("objective=dpo,ipo", "trainer.learning_rate=1e-05"),
         ("objective=ipo", "objective/shape=power", f"{ALPHA}=0.5,1", "objective.gamma=0.3"),
         ("seed=1,2", "data=jsonl", "data.path='my data, v2.jsonl'", "model.path=m", "tracking.tags=[a,b]",
          "model.lora.target_modules=[q,v]", "trainer.threads=1"),
         ("seed=1,2", "data=glassbox", "model.path=m", "trainer.use_cpu=true"), ("seed=1,2", "data=hub", "model=from_scratch"),
         (r"data.system='Say C:\dir, not /dir','Be brief.'",)],
    )  # fmt: skip
    def test_a_cells_command_gives_the_cells_configuration(self, line, tmp_path):
        """Typed back into `alphapo train --print-config`, it resolves to what the cell recorded."""
        path = craft(tmp_path / "sweep", *line, name="alpha" if f"{ALPHA}=0.25" in line else None)
        html = write_report(SweepDirectory(path), pictures=False).html.read_text()
        commands = [line for line in Page(html).commands if line.startswith("alphapo train")]
        configurations = [yaml.safe_load(f.read_text()) for f in path.glob("cells/*/config.yaml")]
        assert len(commands) == len(configurations)
        for found in configurations:
            del found["trainer"]["save_steps"]  # how often a run is saved is no part of what it is
        for command in commands:
            ran = alphapo(tmp_path, *shlex.split(command)[1:], "--print-config")
            assert ran.code == 0, ran.err
            printed = yaml.safe_load(ran.out)
            del printed["trainer"]["save_steps"]
            assert any(
                all(printed[group] == c[group] for group in printed if group not in ("run", "tracking"))
                for c in configurations
            ), command

    def test_answers_are_side_by_side_for_the_same_prompts(self, sweep, written):
        samples = data_of(written.html.read_text())["samples"]
        assert sorted(samples["answers"]) == ["0", "1", "2"]
        cell = next(c for c in SweepDirectory(sweep).cells() if c["point"] == {ALPHA: 0, "seed": 0})
        folder = sweep / "cells" / cell["id"] / "samples"
        theirs = {r["instruction"]: r["output"] for r in json.loads((folder / "step-8.json").read_text())}
        assert {p: a[0] for p, a in zip(samples["prompts"], samples["answers"]["1"], strict=True)} == theirs
        # A polite opening is worth +1.4 of true reward, a rude one -1.4.
        for start, answer in zip(samples["start"], samples["answers"]["1"], strict=True):
            assert answer[1] - start[1] == pytest.approx(1.4 if answer[0].startswith("sure") else -1.4)


class TestForeignText:
    def test_nothing_that_a_model_or_user_wrote_becomes_markup(self, tmp_path):
        from alphapo_cli.data.glassbox import world

        def change(cell, made):
            made.answers = dict.fromkeys(world.instructions(24), EVIL)
            made.state, made.reason = (
                ("failed", EVIL) if cell.point["data.prompt_column"] == "x" else ("complete", None)
            )

        path = craft(tmp_path, "data.prompt_column=x,y", "seed=0,1", name=None, description=EVIL, change=change)
        record = json.loads((path / "sweep.json").read_text())
        for cell in record["cells"]:
            cell["point"]["data.prompt_column"] += EVIL
        (path / "sweep.json").write_text(json.dumps(record))
        html = write_report(SweepDirectory(path)).html.read_text()
        found = Page(html)
        assert "img" not in {tag for tag, _ in found.tags}
        assert len([tag for tag, _ in found.tags if tag == "script"]) == 2
        assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
        assert EVIL.strip() in found.text
        assert data_of(html)["samples"]["answers"]["1"][0][0] == EVIL

    def test_the_data_cannot_end_its_script(self):
        assert "</" not in page.embedded({"a": EVIL})
        assert json.loads(page.embedded({"a": EVIL})) == {"a": EVIL}


def _states(cell, made):
    by_alpha(cell, made)
    alpha = cell.point[ALPHA]
    made.state = {-1: "failed", -0.5: "stopped", 0: "complete", 0.5: "running", 1: None, 1.5: "interrupted"}[alpha]
    made.reason = {-1: "the loss is nan", -0.5: "guard.max_chosen_drop: 0.5 nats lost"}.get(alpha)
    made.steps = {1.5: ()}.get(alpha, (0, 4) if alpha else (0, 4, 8))


class TestOddSweeps:
    def test_cells_in_every_state(self, tmp_path):
        path = craft(tmp_path, f"{ALPHA}=-1,-0.5,0,0.5,1,1.5", change=_states)
        written = write_report(SweepDirectory(path), pictures=False)
        text = " ".join(Page(written.html.read_text()).text.split())
        assert "1 of 6 cells are complete" in text
        for said in ("the loss is nan", "guard.max_chosen_drop: 0.5 nats lost", "running", "pending", "interrupted"):
            assert said in text
        drawn = data_of(written.html.read_text())
        running = next(c for c in drawn["cells"] if c["state"] == "running")
        assert running["final"]["displacement/chosen"] == pytest.approx(-0.25)  # as far as it went
        states = {r["state"]: r for r in table(written.csv["cells"])}
        assert states["running"]["displacement/chosen"] == "-0.25"
        assert states["pending"]["displacement/chosen"] == ""

    @pytest.mark.parametrize("damage", [
        {"metrics.jsonl": '{"step": 0}\nnonsense\n'}, {"metrics.jsonl": None}, {"metrics.jsonl": '{"step": 0, "dis'},
        {"config.yaml": "a: [", "manifest.json": "{"}, {"manifest.json": '{"command": 3, "versions": [], "data": 1}'},
        {"samples/step-8.json": "[]", "samples/reference.json": "3"}, {"summary.json": None},
        {"summary.json": '{"state": "complete", "metrics": null, "step": null, "cost": null}'},
    ])  # fmt: skip
    def test_a_damaged_cell_does_not_hide_the_others(self, damage, tmp_path):
        def change(cell, made):
            by_alpha(cell, made)
            made.files = damage if cell.point[ALPHA] == 1 else {}

        path = craft(tmp_path, f"{ALPHA}=0,0.5,1", change=change)
        written = write_report(SweepDirectory(path), pictures=False)
        drawn = data_of(written.html.read_text())
        healthy = [c for c in drawn["cells"] if c["point"] < 2]
        assert all(len(c["curves"]) > 20 for c in healthy)
        assert written.sentence.startswith(("Best", "No cell"))

    def test_an_unreadable_file_is_named(self, copy):
        broken = next((copy / "cells").iterdir()) / "metrics.jsonl"
        broken.write_text("nonsense\n")
        text = Page(write_report(SweepDirectory(copy), pictures=False).html.read_text()).text
        assert f"{broken}, line 1: not JSON" in text

    def test_nothing_begun(self, tmp_path):
        path = craft(tmp_path, f"{ALPHA}=0,1", change=lambda cell, made: setattr(made, "state", None))
        written = write_report(SweepDirectory(path))
        assert written.pictures == {}
        text = Page(written.html.read_text()).text
        assert "0 of 2 cells are complete (2 pending)" in text
        assert "No cell has begun." in text

    @pytest.mark.slow
    def test_methods(self, tmp_path):
        path = craft(tmp_path, "objective=dpo,simpo,ipo", "seed=0,1", name=None)
        written = write_report(SweepDirectory(path))
        drawn = data_of(written.html.read_text())
        assert drawn["axis"] == {"key": "objective", "name": "objective", "kind": "category"}
        assert [p["x"] for p in drawn["points"]] == ["dpo", "simpo", "ipo"]
        differs = Page(written.html.read_text()).text
        for key in ("objective.score.name", "objective.link.name", "objective.beta"):
            assert key in differs[differs.index("What differs") : differs.index("settings that all cells share")]
        assert (written.html.parent / "report" / "quadrants.svg").is_file()

    def test_two_keys(self, tmp_path):
        path = craft(tmp_path, f"{ALPHA}=-1,0,1", "objective.gamma_beta_ratio=0,0.5", change=by_alpha)
        drawn = data_of(write_report(SweepDirectory(path), pictures=False).html.read_text())
        assert [(g["name"], g["values"]) for g in drawn["groups"]] == [
            ("alpha", ["-1", "0", "1"]), ("gamma_beta_ratio", ["0", "0.5"]),
        ]  # fmt: skip
        assert {p["series"] for p in drawn["points"]} == {"gamma_beta_ratio=0", "gamma_beta_ratio=0.5"}

    def test_numbers_other_than_alpha_and_no_samples(self, tmp_path):
        def change(cell, made):
            made.samples = made.outcome = False

        path = craft(tmp_path, "trainer.learning_rate=1e-5,1e-4", "objective=dpo", name=None, change=change)
        written = write_report(SweepDirectory(path), pictures=False)
        drawn = data_of(written.html.read_text())
        assert (drawn["axis"]["kind"], drawn["samples"]) == ("ordered", None)
        text = Page(written.html.read_text()).text
        assert "What the models say" not in text
        assert "Length of sampled answers" not in text

    def test_seeds_alone_and_one_seed(self, tmp_path):
        seeds = write_report(SweepDirectory(craft(tmp_path / "a", "seed=0,1", name=None)), pictures=False)
        assert data_of(seeds.html.read_text())["groups"] == []
        one = write_report(SweepDirectory(craft(tmp_path / "b", f"{ALPHA}=0", change=by_alpha)), pictures=False)
        assert "That is alpha = 0 itself." in one.sentence


class TestCommand:
    def test_it_prints_the_page_and_the_finding(self, copy, tmp_path):
        ran = alphapo(tmp_path, "report", str(copy), "--no-pictures", "--json", "-")
        assert ran.code == 0, ran.err
        lines = ran.out.splitlines()
        assert lines[0] == str(copy / "report.html")
        assert lines[1].startswith("Best true win rate")
        result = json.loads(lines[-1])
        assert result["path"] == lines[0]
        assert set(result["csv"]) == {"points", "cells", "curves"}
        assert result["pictures"] == {}
        assert not list((copy / "report").glob("*.png"))

    def test_out(self, copy, snapshot, tmp_path):
        before = snapshot(copy)
        ran = alphapo(tmp_path, "report", str(copy), "--no-pictures", "--out", "talk")
        assert ran.out.splitlines()[0] == str(tmp_path / "talk" / "report.html")
        assert snapshot(copy) == before

    def test_a_place_that_cannot_be_written_to(self, copy, tmp_path):
        (tmp_path / "taken").write_text("a file, not a folder")
        ran = alphapo(tmp_path, "report", str(copy), "--no-pictures", "--out", "taken")
        assert ran.code == 2
        assert ran.fault == "alphapo: taken cannot be written to (Not a directory); choose another place by --out"
        assert not (copy / "report.html").exists()

    def test_an_evaluation_has_no_page_and_is_not_called_a_run(self, tmp_path):
        (tmp_path / "eval-a").mkdir()
        (tmp_path / "eval-a" / "manifest.json").write_text('{"identity": {"judge": {}}}')
        ran = alphapo(tmp_path, "report", "eval-a")
        assert ran.code == 2
        assert "eval-a is neither a training run nor a sweep" in ran.fault
        assert "`alphapo compare A B`" in ran.fault

    def test_what_is_not_a_sweep(self, sweep, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "sweep.json").write_text('{"cells": [{"id": 3}]}')
        for argument, words in (
            ("nowhere", "nowhere: no such directory; give the directory that 'alphapo sweep' printed"),
            ("empty", "empty is not a sweep's directory (no sweep.json)"),
            ("broken", "sweep.json cannot be read"),
            (str(sweep.parent), f"did you mean {sweep}?"),
        ):
            ran = alphapo(tmp_path, "report", argument)
            assert (ran.code, ran.out) == (2, "")
            assert words in ran.fault

    def test_at_the_end_of_a_sweep_it_is_written_only_when_a_cell_has_ended_since(self, copy):
        directory = SweepDirectory(copy)
        html = refreshed(directory)
        first = html.stat().st_mtime_ns
        assert refreshed(directory).stat().st_mtime_ns == first
        summary = next((copy / "cells").iterdir()) / "summary.json"
        summary.write_text(summary.read_text())
        assert refreshed(directory).stat().st_mtime_ns > first

    def test_a_cell_that_ends_while_the_report_is_written_is_in_the_next_one(self, copy, monkeypatch):
        directory = SweepDirectory(copy)
        summary = next((copy / "cells").iterdir()) / "summary.json"
        text = summary.read_text()
        summary.write_text(text.replace('"complete"', '"running"'))
        draw = page.page

        def slow(sweep):
            drawn = draw(sweep)
            summary.write_text(text)  # by another process
            return drawn

        monkeypatch.setattr(page, "page", slow)
        assert "this page shows what there is" in refreshed(directory).read_text()
        monkeypatch.setattr(page, "page", draw)
        assert "this page shows what there is" not in refreshed(directory).read_text()

    def test_a_judgement_of_complete_cells_makes_it_anew(self, copy):
        directory = SweepDirectory(copy)
        refreshed(directory)
        for cell in (copy / "cells").iterdir():
            (cell / "outcome.json").write_text(json.dumps({"key": "k", "metrics": {"eval/win_rate": 0.6137}}))
        assert "0.6137" in refreshed(directory).read_text()

    def test_texts_are_read_as_utf8_whatever_the_locale_says(self, copy, monkeypatch):
        for cell in (copy / "cells").iterdir():
            config = (cell / "config.yaml").read_text(encoding="utf-8")
            (cell / "config.yaml").write_text(config.replace("system: null", "system: Sei höflich"), encoding="utf-8")
        monkeypatch.setattr("locale.getencoding", lambda: "ascii")
        monkeypatch.setattr("io.text_encoding", lambda encoding, *level: encoding or "ascii")
        assert "Sei höflich" in page.page(read(SweepDirectory(copy)))


@pytest.mark.parametrize(("wins", "marked"), [({-1: 0.9, 0: 0.5, 1: 0.3}, True), ({-1: 0.52, 0: 0.5, 1: 0.5}, False),
                                              ({-1: 0.3, 0: 0.6, 1: 0.3}, False)])  # fmt: skip
def test_the_best_is_ringed_only_where_it_can_be_told(tmp_path, wins, marked):
    path = craft(
        tmp_path, f"{ALPHA}=-1,0,1", "seed=0,1,2", prompts=60,
        change=lambda cell, made: setattr(made, "win", wins[cell.point[ALPHA]]),
    )  # fmt: skip
    html = write_report(SweepDirectory(path), pictures=False).html.read_text()
    assert data_of(html)["marked"] is marked
    assert ("the ring marks the best" in Page(html).text) is marked

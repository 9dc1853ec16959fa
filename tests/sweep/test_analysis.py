"""Which point is best and what is said about it, for sweeps written by hand."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from alphapo_cli.cli.sweep import tell
from alphapo_cli.launch.run import columns_of, tables
from alphapo_cli.plots.sweep_outcome import outcome_figure
from alphapo_cli.report.collect import read
from alphapo_cli.report.pictures import curves
from alphapo_cli.sweep import analysis as best_of
from alphapo_cli.sweep import verdicts
from alphapo_cli.sweep.collapse import Collapse, collapsed
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.moved import CHANGE, FELL, moved
from tests.crafted_sweep import ALPHA, craft


def found(path):
    analysis = best_of.analyse(SweepDirectory(path))
    best = verdicts.find_best(analysis)
    return best, verdicts.sentence(analysis, best)


def draw(sweep):
    """Texts of the outcome picture's legend."""
    figure = outcome_figure(curves(sweep), sweep.analysis.metric, best=0.0, verdict=sweep.told)
    return [text.get_text() for text in figure.legends[0].get_texts()]


def wins(**by_alpha):
    """Each alpha's share of prompts won; a key such as a_1 is -1."""
    rates = {float(key[1:].replace("_", "-")): rate for key, rate in by_alpha.items()}

    def change(cell, made):
        made.win = rates[float(cell.point[ALPHA])]

    return change


def test_a_clear_winner_is_distinguishable(tmp_path):
    craft(tmp_path, f"{ALPHA}=-1,0,1", "seed=0,1,2", prompts=60, change=wins(a_1=0.9, a0=0.5, a1=0.3))
    best, said = found(tmp_path)
    assert best["overrides"] == [f"{ALPHA}=-1", "seed=0"]
    assert best["metric"] == "glassbox/true_win_rate"
    low, high = best["interval"]
    assert 0 < low < best["advantage_over_alpha_0"] < high
    assert best["distinguishable"] is True
    low, high = re.match(
        rf"Best true win rate against the start: {100 * best['value']:.0f} % \[(\d+), (\d+)\], "
        rf"n = 60 prompts and 3 seeds, at {ALPHA}=-1 \(best of 3\)\. ", said
    ).groups()  # fmt: skip
    assert int(low) < 100 * best["value"] < int(high)
    assert "It is distinguishable from alpha = 0" in said
    assert (best["verdict"], best["interval_over"], best["seeds"]) == ("distinguishable", "prompts and seeds", 3)
    assert "] over prompts and 3 seeds (paired, corrected for picking the best of 3)." in said
    # 1 - 0.05^(1/3): with so many collapsing, three that do not are seen in 5 %.
    assert said.endswith(
        "None of its 3 trainings collapsed, which can be so by chance where up to 63 % of trainings do."
    )


def test_the_advantage_is_the_difference_of_the_means_over_shared_seeds(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", prompts=40, change=wins(a0=0.4, a1=0.7))
    best, _ = found(tmp_path)
    rates: dict[float, list[float]] = {}
    for cell in SweepDirectory(tmp_path).cells():
        rates.setdefault(cell["point"][ALPHA], []).append(cell["metrics"]["glassbox/true_win_rate"])
    assert best["value"] == pytest.approx(sum(rates[1]) / 2)
    assert best["advantage_over_alpha_0"] == pytest.approx(sum(rates[1]) / 2 - sum(rates[0]) / 2)


def test_of_equals_alpha_0_is_named_and_the_tie_said(tmp_path):
    """Also by round-off: each mean is over three seeds."""
    craft(tmp_path, f"{ALPHA}=-1,0,1,2", "seed=0,1,2", prompts=60, change=wins(a_1=0.7, a0=0.7, a1=0.3, a2=0.7))
    best, said = found(tmp_path)
    assert best["overrides"] == [f"{ALPHA}=0", "seed=0"]
    assert (best["verdict"], best["distinguishable"]) == ("alpha = 0 itself", None)
    assert f"at {ALPHA}=0 (best of 4, tied with alpha=-1 and 1 more)." in said
    assert said.endswith("That is alpha = 0 itself.")


def test_equals_without_alpha_0(tmp_path):
    craft(tmp_path, f"{ALPHA}=-1,1", prompts=20, change=wins(a_1=0.7, a1=0.7))
    best, said = found(tmp_path)
    assert best["overrides"] == [f"{ALPHA}=-1"]
    assert "(best of 2, tied with alpha=1)" in said


@pytest.mark.parametrize(
    "row", ["not JSON\n", '{"step": 8, "pair": 0, "rewards/chosen": null, "rewards/rejected": null}\n']
)
def test_a_probe_file_that_cannot_be_compared_takes_the_interval_only(tmp_path, row):
    def change(cell, made):
        made.outcome, made.samples = False, False
        made.files = {"probe.jsonl": row}

    craft(tmp_path, f"{ALPHA}=0,1", change=change)
    best, said = found(tmp_path)
    assert (best["metric"], best["value"]) == ("rewards/accuracies", 0.5)
    assert said.startswith("Best held-out preference accuracy: 50 %")


def test_failed_cells_are_not_counted_among_the_compared(tmp_path):
    def change(cell, made):
        made.win = 0.8 if cell.point[ALPHA] == 1 else 0.4
        made.state = "failed" if cell.point[ALPHA] > 1 else "complete"

    craft(tmp_path, f"{ALPHA}=0,1,2,3", prompts=20, change=change)
    assert "(best of 2)" in found(tmp_path)[1]


def test_a_winner_by_a_hair_is_not_distinguishable(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", prompts=40, change=wins(a0=0.5, a1=0.52))
    best, said = found(tmp_path)
    assert best["distinguishable"] is False
    assert best["interval"][0] < 0
    assert "It is not distinguishable from alpha = 0" in said
    assert "picking" not in said  # there was nothing to pick from


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    """The same mean advantage, once the same in both seeds, once from a single lucky training."""

    def steady(cell, made):
        made.win = 0.7 if cell.point[ALPHA] else 0.4

    def lucky(cell, made):
        made.win = (1.0 if cell.point["seed"] else 0.4) if cell.point[ALPHA] else 0.4

    intervals = []
    for name, change in (("steady", steady), ("lucky", lucky)):
        craft(tmp_path / name, f"{ALPHA}=0,1", "seed=0,1", prompts=80, change=change)
        best, _ = found(tmp_path / name)
        intervals.append(best["interval"])
    assert intervals[1][1] - intervals[1][0] > 2 * (intervals[0][1] - intervals[0][0])
    assert intervals[1][0] < 0


@pytest.mark.parametrize("alphas", ["0,1,2", "-1,-0.5,0,0.5,1"])
def test_one_seed_decides_nothing(tmp_path, alphas):
    """Of the trained models a difference is certain; of the alphas, nothing is known."""
    craft(
        tmp_path, f"{ALPHA}={alphas}", prompts=60,
        change=lambda cell, made: setattr(made, "win", 0.9 if cell.point[ALPHA] else 0.3),
    )  # fmt: skip
    best, said = found(tmp_path)
    assert (best["verdict"], best["distinguishable"]) == ("undecided", None)
    assert (best["interval_over"], best["seeds"]) == ("prompts", 1)
    assert best["interval"][0] > 0
    assert "Whether it differs from alpha = 0 is undecided: advantage +" in said
    assert "] of these trained models, over prompts (paired, corrected for picking the best of" in said
    assert "another training may differ by more)" in said


def test_one_seed_that_tells_not_even_the_models_apart(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", prompts=40, change=wins(a0=0.5, a1=0.52))
    best, said = found(tmp_path)
    assert (best["verdict"], best["distinguishable"]) == ("not distinguishable", False)
    assert said.endswith("seed=0,1,2,3,4 would measure training noise.")


def test_two_seeds_are_too_few_to_decide(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,0.5,1", "seed=0,1", prompts=200, change=wins(a0=0.2, **{"a0.5": 0.25}, a1=0.9))
    best, said = found(tmp_path)
    assert best["interval"][0] > 0
    assert (best["verdict"], best["distinguishable"], best["interval_over"]) == ("undecided", None, "prompts and seeds")
    assert "two seeds rest on the other points' training noise" in said


class TestSeedsNeeded:
    def test_a_difference_that_more_seeds_would_tell(self, tmp_path):
        """Trainings differ by 0.1 about a difference of 0.14: the number by the formula, in plain numbers."""

        def change(cell, made):
            made.win = (0.54 if cell.point[ALPHA] else 0.4) + (0.1 if cell.point["seed"] == cell.point[ALPHA] else -0.1)

        craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1,2", prompts=400, change=change)
        best, said = found(tmp_path)
        assert best["verdict"] == "not distinguishable"
        assert 4 <= best["seeds_needed"] <= 50
        assert (
            f" {best['seeds_needed']} seeds of each would tell a difference of this size with 80 % probability" in said
        )

    def test_a_difference_that_no_number_of_seeds_tells(self, tmp_path):
        craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1,2", prompts=24, change=wins(a0=0.5, a1=0.55))
        best, said = found(tmp_path)
        assert best["seeds_needed"] is None
        assert "50 seeds of each would not tell a difference of this size with 80 % probability either" in said

    def test_with_one_seed_by_neighbours_which_is_said(self, tmp_path):
        rates = {"a_1": 0.4, "a_0.5": 0.5, "a0": 0.45, "a0.5": 0.7, "a1": 0.5}
        craft(tmp_path, f"{ALPHA}=-1,-0.5,0,0.5,1", prompts=300, change=wins(**rates))
        assert "(between neighbouring alphas, taken as independent; seeds would measure it)" in found(tmp_path)[1]


def test_collapsed_trainings_are_counted_and_named(tmp_path):
    def change(cell, made):
        made.win = 0.05 if (cell.point[ALPHA], cell.point["seed"]) == (1, 2) else 0.6 + 0.01 * cell.point["seed"]

    craft(tmp_path, f"{ALPHA}=0,1,2", "seed=0,1,2", prompts=100, change=change)
    directory = SweepDirectory(tmp_path)
    analysis = best_of.analyse(directory)
    (one,) = verdicts.collapses(analysis)
    assert one["overrides"] == [f"{ALPHA}=1", "seed=2"]
    assert one["value"] == pytest.approx(0.05, abs=0.03)
    said = verdicts.sentence(analysis, verdicts.find_best(analysis))
    assert (
        "Trainings that collapsed: 1 of 3 of alpha=1 (seed 2: 3 %). Where trainings collapse, take 5 seeds or more."
        in said
    )
    assert directory.write_summary(None, verdicts.collapses(analysis))["collapsed"] == [one]


def test_what_counts_as_a_collapse():
    steady = {0: 0.60, 1: 0.62, 2: 0.61}
    assert collapsed([steady, {0: 0.6, 1: 0.59, 2: 0.45}]) == [Collapse(1, 2, 0.45)]
    assert collapsed([steady, {0: 0.6, 1: 0.59, 2: 0.52}]) == []  # by less than 0.1
    assert collapsed([{0: 0.6, 1: 0.1}, steady]) == [Collapse(0, 1, 0.1)]  # the lower of two
    noisy = [{0: 0.2, 1: 0.8, 2: 0.5}, {0: 0.1, 1: 0.4, 2: 0.7}]
    assert collapsed(noisy) == []  # all of them vary so
    assert collapsed([{0: 0.6}, {}]) == []


def test_alpha_0_itself(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", change=wins(a0=0.8, a1=0.3))
    best, said = found(tmp_path)
    for key in ("advantage_over_alpha_0", "interval", "interval_over", "seeds", "distinguishable"):
        assert best[key] is None  # nothing is compared
    assert best["verdict"] == "alpha = 0 itself"
    assert said.endswith("That is alpha = 0 itself.")
    directory = SweepDirectory(tmp_path)
    analysis = best_of.analyse(directory)
    assert verdicts.verdict(analysis, best)["outcome"] == "alpha = 0 itself"
    figures = draw(read(directory, analysis))
    assert not any("best" in text for text in figures)  # no mark: there is no evidence that it is better


def test_without_alpha_0_there_is_nothing_to_compare_with(tmp_path):
    craft(tmp_path, f"{ALPHA}=0.5,1", change=wins(**{"a0.5": 0.8, "a1": 0.3}))
    best, said = found(tmp_path)
    assert (best["advantage_over_alpha_0"], best["interval"], best["distinguishable"]) == (None, None, None)
    assert (best["verdict"], verdicts.verdict(best_of.analyse(SweepDirectory(tmp_path)), best)["outcome"]) == (
        None, "not compared",
    )  # fmt: skip
    assert said.endswith("There is no alpha = 0 cell to compare with.")


def test_an_alpha_0_that_is_not_complete_is_not_called_missing(tmp_path):
    def change(cell, made):
        made.state = "complete" if cell.point[ALPHA] else "running"

    craft(tmp_path, f"{ALPHA}=0,1", change=change)
    assert found(tmp_path)[1].endswith("No alpha = 0 cell to compare with is complete.")


def test_one_prompt_is_named_as_the_obstacle(tmp_path):
    """All seeds answered it, so that seeds and prompts do agree."""
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1,2", prompts=1, change=wins(a0=0.0, a1=1.0))
    best, said = found(tmp_path)
    assert best["interval"] is None
    assert "It cannot be compared with alpha = 0: an interval takes two prompts, and there is one." in said


def test_answers_that_cannot_be_read_are_named_as_the_obstacle(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", prompts=20, change=wins(a0=0.2, a1=0.9))
    for cell in (tmp_path / "cells").iterdir():
        (cell / "samples" / "step-8.json").write_text("no JSON")
    assert "It cannot be compared with alpha = 0: what it did on single prompts cannot be read." in found(tmp_path)[1]


def test_two_points_of_two_seeds_have_no_others_to_rest_on(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", prompts=40, change=wins(a0=0.5, a1=0.52))
    said = found(tmp_path)[1]
    assert "over prompts and 2 seeds (paired; two seeds tell little of training noise)" in said
    assert "other points" not in said


def test_no_shared_seed(tmp_path):
    def change(cell, made):
        made.win = 0.8 if cell.point[ALPHA] else 0.4
        made.state = "failed" if bool(cell.point["seed"]) == bool(cell.point[ALPHA]) else "complete"

    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", change=change)
    best, said = found(tmp_path)
    assert best["interval"] is None
    assert "no complete seed of both answered the same prompts" in said


def test_answers_to_other_prompts_are_not_paired(tmp_path):
    """A cell whose samples answer other instructions has no paired difference with the rest."""
    craft(tmp_path, f"{ALPHA}=0,1,2", change=wins(a0=0.4, a1=0.5, a2=0.9))
    other = craft(tmp_path.parent / "other", f"{ALPHA}=2", prompts=30, change=wins(a2=0.9))
    (cell,) = (c for c in SweepDirectory(tmp_path).cells() if c["point"][ALPHA] == 2)
    for file in ("reference.json", "step-8.json"):
        text = (other / "cells" / cell["id"] / "samples" / file).read_text()
        (tmp_path / "cells" / cell["id"] / "samples" / file).write_text(text)
    best, said = found(tmp_path)
    assert best["overrides"] == [f"{ALPHA}=2"]
    assert best["distinguishable"] is None
    assert "It cannot be compared" in said


def test_every_point_is_compared_with_alpha_0_of_its_own_other_values(tmp_path):
    """Alpha = 1 wins by the second key's doing alone, and no credit goes to alpha."""

    def change(cell, made):
        made.win = 0.9 if cell.point["objective.gamma_beta_ratio"] else 0.2

    craft(tmp_path, f"{ALPHA}=0,1", "objective.gamma_beta_ratio=0,0.5", prompts=60, change=change)
    analysis = best_of.analyse(SweepDirectory(tmp_path))
    assert [a is None for a in analysis.advantages] == [True, True, False, False]
    assert [a.value for a in analysis.advantages if a] == [0.0, 0.0]


def test_without_the_embedded_world_the_probe_pairs_are_compared(tmp_path):
    def change(cell, made):
        made.outcome = made.samples = False
        right = 26 if cell.point[ALPHA] else 18
        rows = [
            {"step": 8, "pair": p, "tokens/chosen": 3 + p, "tokens/rejected": 4,
             "rewards/chosen": 1.0 if p < right else -1.0, "rewards/rejected": 0.0}
            for p in range(30)
        ]  # fmt: skip
        made.files = {"probe.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}

    craft(tmp_path, f"{ALPHA}=0,1", change=change)
    analysis = best_of.analyse(SweepDirectory(tmp_path))
    assert analysis.metric == "rewards/accuracies"
    assert analysis.advantages[1].value == pytest.approx(8 / 30)
    assert analysis.estimates[1].value == pytest.approx(26 / 30)
    for cell in (tmp_path / "cells").iterdir():
        summary = json.loads((cell / "summary.json").read_text())
        lines = (cell / "probe.jsonl").read_text().splitlines()
        right = [json.loads(line)["rewards/chosen"] > 0 for line in lines]
        summary["metrics"]["rewards/accuracies"] = sum(right) / 30
        (cell / "summary.json").write_text(json.dumps(summary))
    best, said = found(tmp_path)
    assert (best["value_over"], best["interval_over"]) == ("pairs", "pairs")
    assert "n = 30 pairs, at" in said
    assert "of these trained models, over pairs (paired" in said


def test_what_else_is_swept_is_a_series_only_beside_alpha():
    def series(*points):
        cells = [{"point": point, "state": "complete", "metrics": {}} for point in points]
        return [(point.label, point.series) for point in best_of.points(cells)]

    alpha = {"objective.shape.alpha": 0.5}
    assert series({"objective": "ipo", **alpha, "seed": 0}) == [("objective=ipo alpha=0.5", "objective=ipo")]
    assert series({"objective": "ipo", "seed": 0}, {"objective": "dpo", "seed": 0}) == [
        ("objective=ipo", ""), ("objective=dpo", ""),
    ]  # fmt: skip


def test_seeds_alone(tmp_path):
    craft(tmp_path, "seed=0,1,2", name=None)
    said = found(tmp_path)[1]
    assert said.startswith("The true win rate against the start is ")
    assert said.endswith("n = 24 prompts and 3 seeds, the mean of one configuration's seeds.")


def test_nothing_complete(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", change=lambda cell, made: setattr(made, "state", "running"))
    assert found(tmp_path) == (None, "No cell is complete, so there is nothing to compare.")


@pytest.mark.parametrize("value", ["NaN", '"much"'])
def test_a_metric_that_is_no_number_is_none(tmp_path, value):
    craft(tmp_path, f"{ALPHA}=0,1", prompts=20, change=wins(a0=0.5, a1=0.9))
    for cell in (tmp_path / "cells").iterdir():
        text = json.loads((cell / "summary.json").read_text())
        text["metrics"] = dict.fromkeys(text["metrics"], json.loads(value))
        (cell / "summary.json").write_text(json.dumps(text))
    assert found(tmp_path) == (None, "No cell is complete, so there is nothing to compare.")


@pytest.mark.parametrize(
    ("prompts", "seeds", "head"),
    [(60, "seed=0", "n = 60 prompts, 95 % interval over prompts"),
     (60, "seed=0,1", "n = 60 prompts, 95 % interval over prompts and seeds"),
     (1, "seed=0,1", "n = 1 prompt, no interval")],
)  # fmt: skip
def test_the_table_says_over_what_its_intervals_are(tmp_path, prompts, seeds, head):
    craft(tmp_path, f"{ALPHA}=0,1", seeds, prompts=prompts, change=wins(a0=0.4, a1=0.6))
    said = columns_of(best_of.analyse(SweepDirectory(tmp_path)))
    assert f"true win rate: against the model before training, {head}" in said


def test_the_table_counts_the_seeds_that_its_means_are_over(tmp_path):
    def change(cell, made):
        made.state = "failed" if cell.point[ALPHA] and cell.point["seed"] == 2 else "complete"

    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1,2", change=change)
    (seeds,) = (
        column
        for part in tables("alpha", best_of.analyse(SweepDirectory(tmp_path)), 120)
        for column in part.columns
        if str(column.header) == "seeds"
    )
    assert list(seeds.cells) == ["3", "2 of 3"]


def test_swept_text_is_no_markup(tmp_path):
    from alphapo_cli.sweep.status import show

    show(tmp_path, {"a": ["data.system='[/]'"]}, None)


def test_the_verdict_of_summary_json_names_the_cells_that_it_is_about(tmp_path, capsys):
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", prompts=200, change=wins(a0=0.2, a1=0.9))
    directory = SweepDirectory(tmp_path)
    analysis = best_of.analyse(directory)
    best = verdicts.find_best(analysis)
    said = verdicts.verdict(analysis, best)
    assert said["outcome"] == "undecided"
    assert " ".join(said["sentences"]) == verdicts.sentence(analysis, best)
    cells = {c["id"]: c["point"][ALPHA] for c in directory.cells()}
    assert (cells[said["best"]], cells[said["control"]]) == (1, 0)
    assert directory.write_summary(best, (), said)["verdict"] == said
    tell(said, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("verdict: Best true win rate against the start: 9")
    report = f"next: alphapo report {tmp_path / 'cells' / said['best']} {tmp_path / 'cells' / said['control']}"
    assert any(line.startswith(report) for line in lines)
    assert any("seed=0,1,2,3,4" in line for line in lines)
    assert f"next: alphapo chat {tmp_path / 'cells' / said['best']}" in lines


@pytest.mark.parametrize(("width", "parts"), [(120, 1), (80, 2)])
def test_the_table_fits_and_cuts_nothing(width, parts, tmp_path):
    """What a narrow terminal cannot hold stands in a further table, and every rate has its n."""
    craft(tmp_path, f"{ALPHA}=0,1", "seed=0,1", prompts=200, change=wins(a0=0.2, a1=0.9))
    for file in tmp_path.glob("cells/*/summary.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "data": {"probe_pairs": 24}}))
    analysis = best_of.analyse(SweepDirectory(tmp_path))
    console = Console(width=width)
    found = tables("s", analysis, width)
    assert len(found) == parts
    with console.capture() as captured:
        for one in found:
            console.print(one)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in captured.get()
    assert captured.get().count("alpha=0 ") == parts
    assert any("n = 200 prompts" in line for line in columns_of(analysis))
    assert any("share of 24 held-out pairs" in line for line in columns_of(analysis))


def test_a_sweep_of_which_nothing_is_complete_has_no_verdict_but_a_next_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["alphapo", "sweep", "alpha", "run.name=two words"])
    craft(tmp_path, f"{ALPHA}=0,1", change=lambda cell, made: setattr(made, "state", "failed"))
    analysis = best_of.analyse(SweepDirectory(tmp_path))
    said = verdicts.verdict(analysis, verdicts.find_best(analysis))
    assert (said["outcome"], said["best"]) == ("nothing complete", None)
    tell(said, tmp_path)
    assert "next: alphapo sweep alpha 'run.name=two words'  # goes on where it stopped" in capsys.readouterr().err


def test_changes_of_pairs_have_intervals_over_pairs_and_seeds(tmp_path):
    """Means and Student's interval in plain numbers; of the share that fell, Wilson's."""
    craft(tmp_path, f"{ALPHA}=0,1", change=wins(a0=0.5, a1=0.5))
    changes = {0: [-0.5, 0.1, -0.2, -0.4], 1: [0.3, 0.2, -0.1, 0.4]}
    directory = SweepDirectory(tmp_path)
    for cell in directory.cells():
        rows = [{"step": s, "pair": p, "displacement/chosen": v * s / 8} for s in (0, 8)
                for p, v in enumerate(changes[cell["point"][ALPHA]])]  # fmt: skip
        (directory.cell(cell["id"]).path / "probe.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = moved(directory, best_of.analyse(directory).points)
    assert found.pairs == 4
    for k, values in changes.items():
        mean = sum(values) / 4
        deviation = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5
        change, fell = (found.estimates[key][k] for key in (CHANGE, FELL))
        # t(0.975, 3) = 3.18245
        assert (change.value, change.low, change.high) == pytest.approx(
            (mean, mean - 3.18245 * deviation / 2, mean + 3.18245 * deviation / 2), abs=1e-5
        )
        assert fell.value == sum(v < 0 for v in values) / 4
        assert 0 <= fell.low < fell.value < fell.high <= 1


def test_the_note_on_the_scale_is_made_where_the_slope_changes(tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1", change=wins(a0=0.5, a1=0.5))
    directory = SweepDirectory(tmp_path)
    assert best_of.scale_note(best_of.analyse(directory).points) == ""  # 0.5 in every cell
    for cell in directory.cells():
        file = directory.cell(cell["id"]).summary_file
        summary = json.loads(file.read_text())
        summary["metrics"]["shape/slope"] = 1.0 + cell["point"][ALPHA]
        summary["verdict"] = {"clipped": 0.25 * cell["point"][ALPHA]}
        file.write_text(json.dumps(summary))
    points = best_of.analyse(directory).points
    assert "Mean h' runs from 1 to 2" in best_of.scale_note(points)
    assert [p.clipped for p in points] == [0.0, 0.25]

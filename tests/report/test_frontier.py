"""Win rate against KL over a sweep: whose path it is, who stands on the frontier, and where it is shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alphapo_cli.plots.frontier import FrontierPath, frontier_figure
from alphapo_cli.plots.sweep_curves import SweepCurve
from alphapo_cli.report import collect, csv_files, page
from alphapo_cli.report.frontier import Place, front, frontier, mean_path, path_of
from alphapo_cli.report.pictures import curves, frontier_paths
from alphapo_cli.sweep.analysis import outcomes
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.moved import CHANGE, moved
from tests.crafted_sweep import ALPHA, craft
from tests.report.test_report import data_of

RATE = "glassbox/true_win_rate"


def ends(*places: tuple[float, float], start: float | None = None) -> dict[int, list[Place]]:
    before = [] if start is None else [Place(0, 0.0, start)]
    return {k: [*before, Place(8, kl, rate)] for k, (kl, rate) in enumerate(places)}


@pytest.mark.parametrize(
    ("paths", "on"),
    [
        (ends((0.1, 0.6), (0.2, 0.8), (0.3, 0.7)), (0, 1)),  # the third: more KL and fewer wins than the second
        (ends((0.3, 0.7), (0.1, 0.6)), (1, 0)),  # by KL
        (ends((0.1, 0.6), (0.1, 0.7), (0.2, 0.7)), (1,)),  # as much KL and fewer wins; as many wins and more KL
        (ends((0.2, 0.8), (0.2, 0.8)), (0, 1)),  # neither beats the other
        (ends((0.1, 0.4), (0.2, 0.6), start=0.5), (1,)),  # the start wins more than the first, at no KL
        (ends((0.1, 0.4), start=0.5), ()),
    ],
)
def test_the_frontier_is_what_no_other_end_and_no_start_beats(paths: Any, on: tuple[int, ...]) -> None:
    assert front(paths) == on


def test_a_path_is_the_mean_over_seeds_at_shared_steps_and_at_their_ends() -> None:
    one = [Place(0, 0.0, 0.5), Place(4, 0.1, 0.6), Place(8, 0.2, 0.8)]
    other = [Place(0, 0.0, 0.5), Place(6, 0.4, 0.4)]  # stopped
    assert mean_path([one, other]) == [Place(0, 0.0, 0.5), Place(8, pytest.approx(0.3), pytest.approx(0.6))]
    assert mean_path([one]) == one


def test_the_models_of_eval_at_are_on_the_path_of_a_judged_cell() -> None:
    judged = [
        {"step": 4, "metrics": {"eval/win_rate": 0.7}, "probe": {"kl/reference": 0.1}},
        {"step": 0, "metrics": {"eval/win_rate": 0.5}, "probe": {"kl/reference": 0.0}},
        {"step": 6, "metrics": {"eval/win_rate": 0.9}, "probe": {}},  # not measured there
        "damaged",
    ]
    rows = [{"step": step, "kl/reference": 0.05 * step, "displacement/chosen": -0.1} for step in (0, 4, 8)]
    cell: Any = SimpleNamespace(
        run=SimpleNamespace(outcome=lambda: {"over_training": judged}), rows=rows, step=8, model_step=8,
        final={"kl/reference": 0.4, "eval/win_rate": 0.6},
    )  # fmt: skip
    assert path_of(cell, "eval/win_rate") == [Place(0, 0.0, 0.5), Place(4, 0.1, 0.7), Place(8, 0.4, 0.6)]
    assert path_of(cell, RATE) == []


def keep_the_best(path: Path) -> None:
    """Make step 4 the best of every cell: its answers win as often as the metric says, those of step 8 never."""
    for folder in (path / "cells").iterdir():
        rows = {row["step"]: row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}
        summary = json.loads((folder / "summary.json").read_text())
        rows[4][RATE] = rows[8][RATE]
        summary |= {"best": {"step": 4, "metric": RATE, "value": rows[4][RATE]}, "metrics": rows[4]}
        rows[8] |= {RATE: 0.0, "kl/reference": 0.9}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        samples = folder / "samples"
        outputs = json.loads((samples / "step-8.json").read_text())
        (samples / "step-4.json").write_text(json.dumps(outputs))
        (samples / "step-8.json").write_text(json.dumps([row | {"output": "hmm ,"} for row in outputs]))
        moved = [{"step": step, "pair": p, CHANGE: -0.1 * step} for step in (0, 4, 8) for p in range(5)]
        (folder / "probe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))


def test_a_cell_that_keeps_its_best_step_is_judged_by_that_model(tmp_path: Path) -> None:
    def change(cell: Any, made: Any) -> None:
        made.win, made.kl = (0.8, 0.3) if cell.point[ALPHA] == 0 else (0.6, 0.1)

    path = craft(tmp_path / "alpha", f"{ALPHA}=0,1", "seed=0", change=change, prompts=50)
    keep_the_best(path)
    sweep = collect.read(SweepDirectory(path))
    for cell in sweep.cells:
        assert outcomes(cell.run, RATE).mean() == pytest.approx(cell.final[RATE])
    estimate = moved(SweepDirectory(path), sweep.analysis.points).estimates[CHANGE][0]
    assert estimate is not None
    assert estimate.value == pytest.approx(-0.4)
    found = frontier(sweep)
    assert found is not None
    assert {k: [place.step for place in path] for k, path in found.paths.items()} == {0: [0, 4], 1: [0, 4]}
    assert found.paths[0][-1] == Place(4, pytest.approx(0.15), sweep.cells[0].final[RATE])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three alphas, two seeds: the middle one wins most, the last fewer at more KL; and one cell that failed."""

    def change(cell, made):
        alpha = cell.point[ALPHA]
        made.win, made.kl = {-1: (0.55, 0.1), 0: (0.8, 0.3), 1: (0.7, 0.4)}[alpha]
        if alpha == 0 and cell.point["seed"] == 1:
            made.state = "failed"

    path = craft(tmp_path_factory.mktemp("sweeps") / "alpha", f"{ALPHA}=-1,0,1", "seed=0,1", change=change, prompts=100)
    return collect.read(SweepDirectory(path))


def test_a_sweeps_report_has_it(sweep, tmp_path):
    found = frontier(sweep)
    assert found.metric == RATE
    assert {k: (len(path), path[-1].kl) for k, path in found.paths.items()} == {
        0: (3, pytest.approx(0.1)), 1: (3, pytest.approx(0.3)), 2: (3, pytest.approx(0.4)),
    }  # fmt: skip
    assert found.front == (0, 1)
    data = data_of(page.page(sweep))["frontier"]
    assert data["front"] == [0, 1]
    (end,) = (cell.final[RATE] for cell in sweep.cells if cell.point == 1 and cell.state == "complete")
    assert data["paths"]["1"] == [[0, 0.0, 0.5], [4, 0.15, pytest.approx(0.25 + end / 2)], [8, 0.3, pytest.approx(end)]]
    written = csv_files.write_csv(sweep, tmp_path)
    with written["points"].open(newline="") as file:
        assert [row["on_frontier"] for row in csv.DictReader(file)] == ["True", "True", "False"]


def test_its_picture_has_paths_ends_intervals_and_the_stepped_line(sweep):
    paths = frontier_paths(sweep, curves(sweep))
    (ax,) = frontier_figure(paths, over="prompts").axes
    drawn: dict[str, Any] = {
        gid: [line for line in ax.get_lines() if line.get_gid() == gid] for gid in ("path", "end", "front", "interval")
    }
    assert {gid: len(lines) for gid, lines in drawn.items()} == {"path": 3, "end": 3, "front": 2, "interval": 3}
    (line,) = [line for line in ax.get_lines() if line.get_gid() == "frontier"]
    assert list(line.get_xdata()) == pytest.approx([0.1, 0.3, 0.4])  # goes on to the largest KL
    first, second = (sweep.points[k].mean(RATE) for k in (0, 1))
    assert list(line.get_ydata()) == pytest.approx([first, second, second])
    assert line.get_drawstyle() == "steps-post"
    low, high = drawn["interval"][0].get_ydata()
    assert low < drawn["end"][0].get_ydata()[0] < high


def test_one_point_without_a_path_and_names_with_dollars():
    lone = FrontierPath(SweepCurve(None, "a"), [(0.2, 0.4)], None, False)
    (ax,) = frontier_figure([lone], "objective").axes
    assert [line.get_gid() for line in ax.get_lines() if line.get_gid()] == ["end"]


def test_a_sweep_without_win_rates_has_none(tmp_path):
    def change(cell, made):
        made.outcome = False

    made = collect.read(SweepDirectory(craft(tmp_path / "s", f"{ALPHA}=0,1", change=change)))
    assert made.analysis.metric == "rewards/accuracies"
    assert frontier(made) is None
    assert frontier_paths(made, curves(made)) == []
    assert "frontier" not in data_of(page.page(made))

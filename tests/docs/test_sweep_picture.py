"""README's picture is that of today's sweep and of today's intervals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from alphapo_cli.config.overrides import Sources
from alphapo_cli.runtime.statistics.bounded_mean import mean_interval
from alphapo_cli.sweep.grid import make

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    with (ROOT / "docs" / "sweep-alpha.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_the_sweep_that_make_demo_runs(rows):
    grid = make("alpha", [], Sources())
    assert {row["sweep"] for row in rows} == {grid.hash}
    assert [float(row["alpha"]) for row in rows] == [cell.cfg.objective.shape["alpha"] for cell in grid.cells]


def test_its_intervals_are_those_of_today(rows):
    for row in rows:
        values = np.repeat([1.0, 0.5, 0.0], [int(row[key]) for key in ("won", "drawn", "lost")])
        assert len(values) == 256
        ends = mean_interval(values, 0.95)
        shown = [float(row[key]) for key in ("value", "low", "high")]
        assert shown == pytest.approx([values.mean(), *ends], abs=1e-6)  # six digits are kept


def test_one_seed_is_over_prompts_and_decides_nothing(rows):
    assert {row["over"] for row in rows} == {"prompts"}
    assert "distinguishable" not in {row["verdict"] for row in rows}
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "95 % intervals over prompts: of these models, one seed each" in text


def test_readme_says_where_it_is_best(rows):
    best = max(rows, key=lambda row: float(row["value"]))
    assert float(best["alpha"]) < 0

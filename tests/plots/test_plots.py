"""Pictures: what they show, read from the figures; no pixels are compared."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from alphapo_cli.plots import style
from alphapo_cli.plots.figures import (
    SweepCurve,
    displacement_figure,
    outcome_figure,
    run_curves,
    run_figure,
    sweep_displacement,
    sweep_outcome,
)
from alphapo_cli.plots.over_training import over_training_figure

WIN = "glassbox/true_win_rate"


def _rows(slope: float = -0.5, last: int = 64, **extra: float) -> list[dict[str, Any]]:
    """A metrics.jsonl: probe rows every 16 steps between rows of the training batches."""
    rows: list[dict[str, Any]] = []
    for step in range(0, last + 1, 8):
        rows.append({"step": step, "train/loss": 0.7})
        if step % 16 == 0:
            part = step / 64
            rows.append(
                {
                    "step": step,
                    "displacement/chosen": slope * part,
                    "displacement/rejected": 2 * slope * part,
                    "rewards/margins": 0.1 + part,
                    "rewards/accuracies": 0.6,
                    "displacement/share_chosen_down": None if step == 0 else 0.75,
                    "gradient_weight/chosen": -0.4,
                    "gradient_weight/rejected": 0.3,
                    **extra,
                }
            )
    return rows


def _cell(alpha: float | None, value: float = 0.6, **changes: Any) -> SweepCurve:
    given: dict[str, Any] = {
        "alpha": alpha,
        "label": f"alpha={alpha}",
        "rows": _rows(-0.5 if alpha is None else alpha - 1),
        "metrics": {WIN: value, "displacement/chosen": -0.5, "displacement/share_chosen_down": 0.75},
    }
    return SweepCurve(**{**given, **changes})


def _lines(ax: Axes, gid: str) -> list[tuple[list[float], list[float]]]:
    return [
        (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in ax.get_lines()
        if line.get_gid() == gid
    ]


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _draw(figure: Figure) -> None:
    figure.canvas.draw()


class TestRun:
    def test_the_panels_show_the_probes_values_against_steps(self) -> None:
        figure = run_figure(_rows(), "alphapo-1234")
        assert figure.get_suptitle() == "alphapo-1234"
        displacement, margin, shares, gradient, loss, kl = figure.axes
        steps = [0.0, 16.0, 32.0, 48.0, 64.0]
        chosen = [-0.0, -0.125, -0.25, -0.375, -0.5]
        assert _lines(displacement, "curve") == [(steps, chosen), (steps, [2 * value for value in chosen])]
        assert _lines(margin, "curve") == [(steps, [0.1, 0.35, 0.6, 0.85, 1.1])]
        assert _lines(shares, "curve") == [(steps, [0.6] * 5), (steps[1:], [0.75] * 4)]  # the null is left out
        assert _lines(gradient, "curve") == [(steps, [0.4] * 5), (steps, [0.3] * 5)]  # magnitudes
        assert "nats per token" in displacement.get_ylabel()
        assert _lines(loss, "curve") == [([float(step) for step in range(0, 65, 8)], [0.7] * 9)]
        assert _lines(kl, "curve") == []
        assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "", *["optimizer step"] * 3]
        assert displacement.get_legend_handles_labels()[1] == ["chosen", "rejected"]
        # The two sides can be told apart without their colours, and the largest weight is inside the panel.
        for ax in (displacement, gradient):
            assert [line.get_linestyle() for line in ax.get_lines() if line.get_gid() == "curve"] == ["-", "--"]
        assert gradient.get_ylim()[0] == 0
        assert gradient.get_ylim()[1] > 0.4 * 1.05

    def test_the_embedded_world_adds_win_rate_and_length(self) -> None:
        figure = run_figure(_rows(**{WIN: 0.7, "glassbox/length": 12.0}), "t")
        assert len(figure.axes) == 9
        win = figure.axes[4]
        assert _lines(win, "curve")[0][1] == [0.7] * 5
        assert [0.5, 0.5] in [list(line.get_ydata()) for line in win.get_lines()]

    def test_the_best_step_is_marked_in_every_panel_that_has_data(self) -> None:
        rows = _rows(**{WIN: 0.5, "glassbox/length": 12.0})
        for row in rows:
            if WIN in row:
                row[WIN] = {0: 0.9, 32: 0.8}.get(row["step"], 0.5)  # step 0 is the start itself
        figure = run_figure(rows, "t")
        assert [_lines(ax, "best")[0][0] for ax in figure.axes[:7]] == [[32.0, 32.0]] * 7
        assert "best step: 32" in _legend(figure)
        chosen = run_figure(_rows(), "t", 16)  # by another metric than the win rate
        assert "best step: 16" in _legend(chosen)
        assert _legend(run_figure(_rows(), "t")) == []

    @pytest.mark.parametrize("accuracies", [(0.7, 0.3, 0.5, 0.1), (1.0, 0.0, 0.9, 0.02)])
    @pytest.mark.parametrize("glassbox", [True, False])
    def test_the_legend_of_the_shares_covers_no_curve(self, accuracies: tuple[float, ...], *, glassbox: bool) -> None:
        keys = (
            "rewards/accuracies",
            "displacement/share_chosen_down",
            "ranking/accuracy",
            "ranking/idealised_accuracy",
        )
        extra = dict(zip(keys, accuracies, strict=True)) | ({WIN: 0.7, "glassbox/length": 12.0} if glassbox else {})
        figure = run_figure(_rows(**extra), "t")
        figure.canvas.draw()
        ax = figure.axes[2]
        covered = ax.get_legend().get_window_extent()
        for line in ax.get_lines():
            if line.get_gid() == "curve":
                places = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
                assert not any(covered.contains(*place) for place in places), line.get_label()
        assert [text.get_text() for text in ax.get_yticklabels()] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]

    def test_a_long_title_is_wrapped_and_keeps_n_with_its_number(self) -> None:
        words = (
            "alphapo, alpha 0.25, beta 2.5, learning rate 0.0008, the embedded world's model, n = 256 held-out pairs"
        )
        said = run_figure(_rows(), words).get_suptitle()
        assert all(len(line) <= 86 for line in said.split("\n"))
        assert "n\u00a0=\u00a0256" in said

    def test_a_band_from_the_quantiles(self) -> None:
        rows = _rows(**{"displacement/chosen/p10": -0.9, "displacement/chosen/p90": 0.2})
        rows[1]["displacement/chosen/p10"] = None  # step 0 drops out of the band
        ax = run_figure(rows, "t").axes[0]
        (band,) = ax.collections
        corners = np.asarray(band.get_paths()[0].vertices)
        assert (corners[:, 0].min(), corners[:, 0].max()) == (16.0, 64.0)
        assert (corners[:, 1].min(), corners[:, 1].max()) == (-0.9, 0.2)
        assert ax.get_title("left") == "Displacement (10-90 % of pairs)"
        assert "10-90 %" not in run_figure(_rows(), "t").axes[0].get_title("left")

    def test_the_interval_of_the_win_rate_is_a_band_that_says_over_what(self) -> None:
        bounds = {f"{WIN}/low": 0.6, f"{WIN}/high": 0.8}
        ax = run_figure(_rows(**{WIN: 0.7, "glassbox/length": 12.0}, **bounds), "t").axes[4]
        assert ax.get_title("left") == "True win rate (95 % over prompts)"
        assert ax.get_ylabel() == "share won against the start"
        (band,) = ax.collections
        assert sorted(set(np.asarray(band.get_paths()[0].vertices)[:, 1].round(6))) == [0.6, 0.8]

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            [{"step": 0, "train/epoch": 1.0}],
            [{"step": 0, "displacement/chosen": None, "rewards/margins": math.nan}],
            [{"step": 0, "displacement/chosen": 0.0}],
        ],
    )
    def test_nothing_measured_is_said(self, rows: list[dict[str, Any]]) -> None:
        figure = run_figure(rows, "t")
        _draw(figure)
        said = [any(text.get_text() == "not measured" for text in ax.texts) for ax in figure.axes]
        assert said == [not any("displacement/chosen" in row and row["displacement/chosen"] == 0 for row in rows),
                        *[True] * 5]  # fmt: skip


class TestOverTraining:
    def title(self, **changes: Any) -> str:
        row = {"step": 6, "metrics": {"eval/win_rate": 0.6, "eval/n_total": 24}, "probe": {}, **changes}
        figure = over_training_figure([row], "t", "90 % over prompts")
        return str(figure.axes[0].get_title("left"))

    def test_the_title_has_the_confidence_and_what_the_intervals_are_over(self) -> None:
        ends = {"eval/win_rate": [0.4, 0.8]}
        assert self.title(intervals=ends) == "Win rate against the reference (90 % over prompts, n = 24)"
        assert self.title() == "Win rate against the reference, n = 24"  # and no level without an interval

    def test_an_axis_that_runs_backwards_says_so(self) -> None:
        row = {"step": 6, "metrics": {"eval/win_rate": 0.6, "eval/n_total": 24}, "probe": {}}
        axes = over_training_figure([row], "t", "95 % over prompts").axes
        backwards = [ax.xaxis_inverted() for ax in axes]
        assert backwards == [False, False, True]
        assert [ax.get_xlabel().endswith("(axis reversed)") for ax in axes] == backwards


class TestSweepDisplacement:
    def test_one_curve_a_cell_in_the_colour_of_its_alpha(self) -> None:
        alphas = [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
        figure = displacement_figure([_cell(alpha) for alpha in alphas])
        chosen, rejected, bar = figure.axes
        assert [len(_lines(ax, "mean")) for ax in (chosen, rejected)] == [8, 8]
        assert [len(_lines(ax, "seed")) for ax in (chosen, rejected)] == [0, 0]
        # alpha - 1 is the slope: the order of the curves is the order of alpha.
        assert [ys[-1] for _, ys in _lines(chosen, "mean")] == [alpha - 1 for alpha in alphas]
        assert [ys[-1] for _, ys in _lines(rejected, "mean")] == [2 * (alpha - 1) for alpha in alphas]
        means = [line for line in chosen.get_lines() if line.get_gid() == "mean"]
        assert len({tuple(line.get_color()) for line in means}) == 8
        assert tuple(means[2].get_color()) == style.DIVERGING(0.5)
        assert bar.get_ylabel() == "alpha"
        assert bar.get_ylim() == (-1.0, 2.0)
        assert "nats per token" in chosen.get_ylabel()
        assert chosen.get_xlabel() == rejected.get_xlabel() == "optimizer step"

    @pytest.mark.parametrize(
        ("alphas", "limits"),
        [([-1.0, 2.0], (-1.0, 2.0)), ([0.25, 1.0], (0.0, 1.0)), ([-1.0, -0.5], (-1.0, 0.0)), ([0.0], (-1.0, 1.0)),
         ([0.5], (0.0, 0.5)), ([-0.5], (-0.5, 0.0))],
    )  # fmt: skip
    def test_the_colours_are_centred_on_0_whatever_the_range(
        self, alphas: list[float], limits: tuple[float, float]
    ) -> None:
        norm = style.centred(alphas)
        assert norm(0.0) == 0.5
        for alpha in alphas:
            assert norm(alpha) + norm(-alpha) == pytest.approx(1.0, abs=1e-12)
        # Beyond as many as are named where their lines end: there are seeds of the same alphas' values.
        figure = displacement_figure([_cell(alpha, series=str(i)) for alpha in alphas for i in range(8)])
        _draw(figure)
        assert figure.axes[2].get_ylim() == limits

    def test_few_values_are_named_where_their_lines_end_on_one_scale_with_bands(self) -> None:
        spread = {
            f"displacement/{side}/{q}": v for side in ("chosen", "rejected") for q, v in (("p10", -2.0), ("p90", 0.3))
        }
        cells = [_cell(alpha, label=str(alpha), rows=_rows(alpha - 1, **spread)) for alpha in (-1.0, 0.0, 0.5)]
        figure = displacement_figure(cells)
        _draw(figure)
        assert len(figure.axes) == 2  # no colour bar
        assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
        for ax in figure.axes:
            assert [text.get_text() for text in ax.texts if text.get_gid() == "label"] == ["\u22121.0", "0.0", "0.5"]
            assert sum(band.get_gid() == "band" for band in ax.collections) == 3
            assert "10-90 % of the pairs" in ax.get_title("left")
        counted = [replace(cell, counts={"displacement/chosen": 256}) for cell in cells]
        assert all("10-90 % of 256 pairs" in ax.get_title("left") for ax in displacement_figure(counted).axes)

    def test_names_of_lines_that_end_together_do_not_overlap(self) -> None:
        cells = [_cell(alpha, label=str(alpha), rows=_rows(-1.0 - alpha / 1000)) for alpha in range(7)]
        for ax in displacement_figure(cells).axes:
            places = sorted(text.xy[1] for text in ax.texts if isinstance(text, Annotation))
            low, high = ax.get_ylim()
            assert min(b - a for a, b in pairwise(places)) > 0.05 * (high - low)

    def test_seeds_are_thin_and_their_mean_thick(self) -> None:
        figure = displacement_figure([_cell(0.5, rows=_rows(slope)) for slope in (-1.0, -2.0, -3.0)] + [_cell(0.0)])
        chosen = figure.axes[0]
        assert len(_lines(chosen, "seed")) == 3
        assert [ys[-1] for _, ys in _lines(chosen, "mean")] == [-1.0, -2.0]
        width = {line.get_gid(): line.get_linewidth() for line in chosen.get_lines()}
        assert width["mean"] > 2 * width["seed"]

    def test_a_failed_seed_ends_in_a_cross_and_leaves_the_mean_alone(self) -> None:
        cells = [_cell(0.5, rows=_rows(-1.0)), _cell(0.5, rows=_rows(-9.0, last=32), state="failed")]
        figure = displacement_figure(cells)
        chosen = figure.axes[0]
        assert _lines(chosen, "failed") == [([32.0], [-4.5])]
        ((steps, values),) = _lines(chosen, "mean")
        assert (steps[-1], values[-1]) == (64.0, -1.0)
        assert _legend(figure) == ["failed here"]

    def test_a_running_seed_does_not_cut_the_mean_short(self) -> None:
        cells = [_cell(0.5, rows=_rows(-1.0)), _cell(0.5, rows=_rows(-1.0, last=16), state="running")]
        ((steps, _),) = _lines(displacement_figure(cells).axes[0], "mean")
        assert steps[-1] == 64.0
        ((steps, _),) = _lines(displacement_figure(cells[1:]).axes[0], "mean")
        assert steps[-1] == 16.0

    def test_a_sweep_over_objectives_has_a_legend_and_no_colour_bar(self) -> None:
        cells = [_cell(None, label=label) for label in ("dpo", "simpo", "dpo", *"abcdef")]
        figure = displacement_figure(cells, name="objective")
        assert len(figure.axes) == 2
        chosen, rejected = figure.axes
        assert [text.get_text() for text in rejected.get_legend().get_texts()] == ["dpo", "simpo", *"abcdef"]
        assert (len(_lines(chosen, "mean")), len(_lines(chosen, "seed"))) == (8, 2)
        assert "objective" in figure.get_suptitle()

    def test_a_second_key_has_its_own_line_style(self) -> None:
        cells = [_cell(alpha, series=series) for alpha in (0.0, 1.0) for series in ("beta=1", "beta=2")]
        figure = displacement_figure(cells)
        means = [line for line in figure.axes[0].get_lines() if line.get_gid() == "mean"]
        assert len(means) == 4
        assert {line.get_linestyle() for line in means} == {"-", "--"}
        assert _legend(figure) == ["beta=1", "beta=2"]


class TestSweepOutcome:
    def test_three_panels_over_alpha(self) -> None:
        figure = outcome_figure([_cell(1.0, 0.4), _cell(-1.0, 0.7), _cell(0.0, 0.6)], zero_name="SimPO")
        win, chosen, share = figure.axes
        assert _lines(win, "means") == [([-1.0, 0.0, 1.0], [0.7, 0.6, 0.4])]
        assert _lines(chosen, "means")[0][1] == [-0.5] * 3
        assert _lines(share, "means")[0][1] == [0.75] * 3
        assert [ax.get_xlabel() for ax in figure.axes] == ["alpha"] * 3
        assert "nats per token" in chosen.get_ylabel()
        assert _legend(figure) == ["best: alpha = -1", "alpha = 0: SimPO"]
        assert [0.5, 0.5] in [list(line.get_ydata()) for line in win.get_lines()]

    def test_of_equals_alpha_0_is_the_best(self) -> None:
        assert "best: alpha = 0" in _legend(outcome_figure([_cell(-1.0, 0.7), _cell(0.0, 0.7), _cell(1.0, 0.4)]))

    def test_the_best_is_the_callers_where_given(self) -> None:
        figure = outcome_figure([_cell(1.0, 0.4), _cell(-1.0, 0.7)], best=1.0)
        assert "best: alpha = 1" in _legend(figure)
        for ax in figure.axes:
            band: Any = next(patch for patch in ax.patches if patch.get_gid() == "best")
            left, right = band.get_x(), band.get_x() + band.get_width()
            assert left < 1.0 < right
            assert left > -1.0

    def test_the_colour_of_a_dot_is_that_of_its_curve(self) -> None:
        cells = [_cell(alpha) for alpha in (-1.0, 0.0, 2.0)]
        dots = [line for line in outcome_figure(cells).axes[0].get_lines() if line.get_gid() == "cell"]
        curves = [line for line in displacement_figure(cells).axes[0].get_lines() if line.get_gid() == "mean"]
        assert [tuple(dot.get_color()) for dot in dots] == [tuple(curve.get_color()) for curve in curves]

    def test_seeds_and_intervals(self) -> None:
        cells = [_cell(0.5, value, intervals={WIN: (value - 0.1, value + 0.05)}) for value in (0.5, 0.7)]
        win, chosen, _ = (figure := outcome_figure(cells)).axes
        ((_, seeds),) = _lines(win, "seeds")
        assert seeds == [0.5, 0.7]
        ((_, dot),) = _lines(win, "cell")
        assert dot == pytest.approx([0.6])
        ((_, bar),) = _lines(win, "interval")
        assert bar == pytest.approx([0.5, 0.65])
        assert _lines(chosen, "interval") == []
        assert _legend(figure) == ["95 % interval", "one seed"]

    def test_the_legend_says_over_what_and_what_is_decided(self) -> None:
        cells = [_cell(alpha, 0.5 + alpha / 10, intervals={WIN: (0.4, 0.7)}, over="prompts") for alpha in (0.0, 1.0)]
        shown = _legend(outcome_figure(cells, verdict="undecided"))
        assert "95 % interval over prompts, 1 seed each" in shown
        assert not any("best" in text for text in shown)  # no band without evidence
        assert not any("best" in text for text in _legend(outcome_figure(cells, verdict="not distinguishable")))
        shown = _legend(outcome_figure(cells, verdict="distinguishable"))
        assert "best: alpha = 1 (distinguishable from alpha = 0)" in shown

    def test_every_panel_has_intervals_n_and_a_title_of_its_own(self) -> None:
        moved = {"displacement/chosen": (-0.8, -0.2), "displacement/share_chosen_down": (0.6, 0.9), WIN: (0.4, 0.7)}
        counts = {"displacement/chosen": 200, "displacement/share_chosen_down": 200, WIN: 256}
        cells = [_cell(a, intervals=moved, over="prompts and seeds", counts=counts) for a in (0.0, 1.0) for _ in "ab"]
        figure = outcome_figure(cells)
        assert [len(_lines(ax, "interval")) for ax in figure.axes] == [2, 2, 2]
        assert _lines(figure.axes[1], "interval")[0][1] == pytest.approx([-0.8, -0.2])
        assert len({ax.get_title("left") for ax in figure.axes}) == 3
        assert [ax.get_ylabel().partition(", n = ")[2] for ax in figure.axes] == [
            "256 prompts",
            "200 pairs",
            "200 pairs",
        ]
        assert "95 % interval over prompts/pairs and 2 seeds" in _legend(figure)

    def test_seeds_that_are_not_complete_are_not_counted(self) -> None:
        """Neither in the interval, which is that of the complete ones, nor in what the legend says of it."""
        ends = {WIN: (0.4, 0.7)}
        cells = [_cell(a, intervals=ends, over="prompts and seeds") for a in (0.0, 1.0) for _ in "abc"]
        other = [_cell(a, state=state) for a, state in ((0.0, "failed"), (1.0, "running"), (2.0, "pending"))]
        assert "95 % interval over prompts and 3 seeds" in _legend(outcome_figure([*cells, *other]))
        few = [*cells[:4], *other]  # three complete seeds at 0, one at 1, none at 2
        assert "95 % interval over prompts and 1 to 3 seeds" in _legend(outcome_figure(few))

    def test_the_legend_is_no_wider_than_the_figure(self) -> None:
        cells = [_cell(a, intervals={WIN: (0.4, 0.7)}, over="prompts and seeds") for a in (0.0, 1.0) for _ in "ab"]
        figure = outcome_figure(cells, verdict="distinguishable", zero_name="SimPO")
        _draw(figure)
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width

    def test_failed_and_unfinished_cells_are_marked_and_not_joined(self) -> None:
        cells = [
            _cell(-1.0, 0.7),
            _cell(0.0, 0.6),
            _cell(1.0, metrics={}, state="failed"),
            _cell(1.5, 0.9, state="interrupted"),
            _cell(2.0, metrics={}, rows=[], state="pending"),
        ]
        figure = outcome_figure(cells)
        win = figure.axes[0]
        assert _lines(win, "means") == [([-1.0, 0.0], [0.7, 0.6])]
        assert _lines(win, "failed")[0][0] == [1.0]
        assert _lines(win, "unfinished") == [([1.5], [0.9])]
        assert _legend(figure) == ["best: alpha = -1", "alpha = 0", "not finished", "failed"]

    def test_objectives_stand_side_by_side_without_a_line(self) -> None:
        cells = [_cell(None, value, label=label) for label, value in (("dpo", 0.5), ("simpo", 0.6), ("dpo", 0.7))]
        figure = outcome_figure(cells, name="objective")
        win = figure.axes[0]
        assert [text.get_text() for text in win.get_xticklabels()] == ["dpo", "simpo"]
        assert [(xs, pytest.approx(ys)) for xs, ys in _lines(win, "cell")] == [([0.0], [0.6]), ([1.0], [0.6])]
        assert _lines(win, "means") == []
        assert _lines(win, "zero") == []

    def test_a_second_key_has_its_own_curve(self) -> None:
        cells = [_cell(alpha, 0.6, series=series) for alpha in (0.0, 1.0) for series in ("beta=1", "beta=2")]
        figure = outcome_figure(cells)
        first, second = _lines(figure.axes[0], "means")
        assert first[1] == second[1] == [0.6, 0.6]
        assert first[0] != second[0]  # moved aside, so that both are seen
        assert np.allclose(first[0], second[0], atol=0.2)
        assert _legend(figure)[:2] == ["beta=1", "beta=2"]

    def test_without_the_embedded_world_the_reward_accuracy_is_the_outcome(self) -> None:
        figure = outcome_figure([_cell(0.0, metrics={"rewards/accuracies": 0.8, "displacement/chosen": -1.0})])
        assert figure.axes[0].get_title("left") == "Reward accuracy on the probe"
        figure = outcome_figure([_cell(0.0, metrics={"kl/reference": 0.8})], metric="kl/reference")
        assert figure.axes[0].get_title("left") == "kl/reference"

    @pytest.mark.parametrize(
        "cells",
        [
            [],
            [_cell(0.0)],
            [_cell(0.0, metrics={}, rows=[], state="failed")],
            [_cell(None, label="dpo", metrics={WIN: None}, rows=[{"step": 0, "displacement/chosen": None}])],
        ],
    )
    @pytest.mark.slow
    def test_little_or_nothing_to_show(self, cells: list[SweepCurve], tmp_path: Path) -> None:
        sweep_outcome(cells, tmp_path / "outcome.png")
        sweep_displacement(cells, tmp_path / "displacement.png")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["displacement.png", "outcome.png"]


def test_names_leave_out_what_all_begin_with() -> None:
    assert style.names(["objective=dpo", "objective=ipo"], bare=True) == {
        "objective=dpo": "dpo",
        "objective=ipo": "ipo",
    }
    # in a legend the key has to be said
    assert style.names(["beta=1", "beta=2"]) == {"beta=1": "beta=1", "beta=2": "beta=2"}
    for texts in (["beta=1", "gamma=1"], ["a=1 b=2", "a=1 b=3"], ["all"]):
        assert style.names(texts, bare=True) == {text: text for text in texts}
    long = ["model=" + "x" * 40 + end for end in "ab"]
    assert len(set(style.names(long, bare=True).values())) == 2


@pytest.mark.slow
def test_saved_pictures_are_wide_enough_and_the_same_twice(tmp_path: Path) -> None:
    run_curves(_rows(), tmp_path / "a" / "curves.png", "run")
    run_curves(_rows(), tmp_path / "b" / "curves.png", "run")
    first, second = tmp_path / "a" / "curves.png", tmp_path / "b" / "curves.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1200
    assert [path.name for path in first.parent.iterdir()] == ["curves.png"]


def test_a_run_whose_name_holds_dollar_signs_has_a_picture(tmp_path: Path) -> None:
    """Between two of them matplotlib reads mathematics, and fails where it is none."""
    run_curves(_rows(), tmp_path / "a.png", "cost_$5_or_$6_")
    assert (tmp_path / "a.png").is_file()


def test_no_pyplot_and_no_torch() -> None:
    script = (
        "import sys, alphapo_cli.plots.figures; print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

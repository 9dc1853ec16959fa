"""The pictures of reward shapes: what they show, read from the figures; no pixels are compared."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphapo_cli.plots import style
from alphapo_cli.plots.reward_shape import reward_shape_figure
from alphapo_cli.plots.shape_data import Answers, Field, RewardShape, from_json, pooled
from alphapo_cli.plots.shape_marks import arrows_of, levels, percent, words_of
from alphapo_cli.plots.sweep_curves import SweepCurve
from alphapo_cli.plots.sweep_shapes import fields_figure, shapes_figure


def shape(alpha: float = 0.5, low: float = -4.0, **changes: Any) -> RewardShape:
    """AlphaPO's slope between `low` and -1, six pairs, and a field that pulls twice as hard at the rejected side."""
    grid, at = np.linspace(low, -1.0, 31), np.linspace(-4.0, -1.0, 25)
    scores = np.stack([np.linspace(low, -1.0, 6), np.linspace(low, -1.5, 6)])
    made = RewardShape(
        grid=grid, shape=(1 - np.exp(-alpha * grid)) / (alpha or 1.0), slope=np.exp(-alpha * grid), shape_start=None,
        start=Answers(0, scores, np.stack([-np.ones(6), np.ones(6)])),
        now=Answers(8, scores - 0.1, np.stack([-np.full(6, 0.5), np.full(6, 0.25)])),
        steps=np.array([0.0, 4.0, 8.0]), means=np.array([[-2.0, -2.2, -2.5], [-2.1, -2.6, -3.0]]),
        weights=np.array([[-1.0, -0.7, -0.5], [1.0, 0.5, 0.25]]), saturated=np.array([[0, 0.1, 0.25], [0, 0, 0.004]]),
        limit=0.01, field=Field(at, np.full((25, 25), -1.0), np.full((25, 25), 2.0)), unit="log-prob per token",
    )  # fmt: skip
    return replace(made, **changes)


def lines(ax: Any, gid: str) -> list[Any]:
    return [line for line in ax.get_lines() if line.get_gid() == gid]


def texts(figure: Any) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


class TestRun:
    def test_curves_means_histograms_and_path(self) -> None:
        found = shape()
        figure = reward_shape_figure(found, "a run")
        h, slope, weights, scores, by_score, by_probability = figure.axes
        assert list(lines(h, "curve")[0].get_ydata()) == found.shape.tolist()
        assert list(lines(slope, "curve")[0].get_ydata()) == found.slope.tolist()
        assert sorted(float(mark.get_xdata()[0]) for mark in lines(slope, "mean")) == [-3.0, -2.5, -2.1, -2.0]
        heights = [patch for patch in scores.patches if patch.get_gid() == "end"]
        assert len(heights) == 2
        assert len(weights.collections) == 4  # two sides, at both ends
        for ax in (by_score, by_probability):
            assert list(lines(ax, "path")[0].get_xdata()) == [-2.0, -2.2, -2.5]
            assert list(lines(ax, "path")[0].get_ydata()) == [-2.1, -2.6, -3.0]
            assert {t.get_text() for t in ax.texts} == {"step 0", "step 8"}

    def test_where_alpha_moved_the_means_of_step_0_are_on_the_curves_of_step_0(self) -> None:
        grid = np.linspace(-4.0, -1.0, 31)
        found = shape(shape_start=grid, slope_start=np.ones(31))
        panels = reward_shape_figure(found, "a run").axes[:2]
        for ax, before, after in zip(
            panels, (found.shape_start, found.slope_start), (found.shape, found.slope), strict=True
        ):
            marks = {float(m.get_xdata()[0]): float(m.get_ydata()[0]) for m in lines(ax, "mean")}
            for mean, curve in ((-2.0, before), (-2.1, before), (-2.5, after), (-3.0, after)):
                assert curve is not None
                assert marks[mean] == pytest.approx(float(np.interp(mean, grid, curve)))
            assert list(lines(ax, "curve at start")[0].get_ydata()) == list(before)
        small = shapes_figure([SweepCurve(-1.0, "-1", shape=found)]).axes[3]
        assert list(lines(small, "curve at start")[0].get_ydata()) == [1.0] * 31
        assert found.as_json()["curve"]["slope_start"] == [1.0] * 31
        again = from_json(found.as_json())
        assert again is not None
        assert again.slope_start is not None
        assert again.slope_start.tolist() == [1.0] * 31

    def test_numbers_of_both_sides_are_written(self) -> None:
        words = texts(reward_shape_figure(shape(), "a run"))
        assert "chosen: mean weight 1 \u2192 0.5, saturated 0 \u2192 25 %" in words
        assert "rejected: mean weight 1 \u2192 0.25, saturated 0 \u2192 <1 %" in words
        assert "below 0.01" in words
        assert "by p: parts of -dL/dp; on these axes, log p, that step leans more to the less likely answer" in words

    def test_without_a_field_a_sentence_stands_in_its_place(self) -> None:
        nothing = np.full((2, 3), np.nan)
        found = shape(field=None, limit=None, saturated=nothing, notes=("no gradient field: columns are read",))
        figure = reward_shape_figure(found, "a run")
        assert len(lines(figure.axes[4], "path")) == 1  # the path is known all the same
        assert " ".join(figure.axes[5].texts[0].get_text().split()) == "no gradient field: columns are read"
        assert "saturated" not in texts(figure)

    @pytest.mark.parametrize("width", [0.0, 1e-12])
    def test_scores_that_are_all_alike_have_a_picture(self, width: float, tmp_path: Path) -> None:
        same = np.full((2, 6), -2.0)
        same[0, 0] += width
        found = shape(start=Answers(0, same, np.ones((2, 6))), now=Answers(8, same, np.zeros((2, 6))))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            style.save(reward_shape_figure(found, "a run"), tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 1000


class TestArrows:
    def test_they_point_down_the_loss(self) -> None:
        field = shape().field
        assert field is not None
        places, directions, sizes = arrows_of(field, 5)
        assert len(places) == 25
        assert directions.tolist() == [pytest.approx([1 / 5**0.5, -2 / 5**0.5])] * 25
        assert np.exp(sizes).tolist() == [pytest.approx(5**0.5)] * 25

    def test_by_probability_they_are_the_slope_of_the_loss_by_it(self) -> None:
        """DPO's loss of two probabilities (2404.04626), by central differences: |dL/dp_l| / |dL/dp_w| = p_w / p_l."""
        at = np.linspace(-4.0, -1.0, 25)
        s_w, s_l = np.meshgrid(at, at)
        pull = 0.1 / (1 + np.exp(0.1 * (s_w - s_l)))
        places, directions, sizes = arrows_of(Field(at, -pull, pull), 25, probability=True)

        def loss(p_w: float, p_l: float) -> float:
            return float(np.log1p(np.exp(-0.1 * (np.log(p_w) - np.log(p_l)))))

        for (w, l), way, size in list(zip(places, directions, np.exp(sizes), strict=True))[::37]:  # noqa: E741
            p_w, p_l = np.exp(w), np.exp(l)
            by_w = (loss(p_w * (1 + 1e-6), p_l) - loss(p_w * (1 - 1e-6), p_l)) / (2e-6 * p_w)
            by_l = (loss(p_w, p_l * (1 + 1e-6)) - loss(p_w, p_l * (1 - 1e-6))) / (2e-6 * p_l)
            # Differences of losses near 0.7 over steps of 1e-6: nine digits less than float64 has.
            assert size == pytest.approx(np.hypot(by_w, by_l), rel=1e-6)
            assert way.tolist() == pytest.approx([-by_w / size, -by_l / size], rel=1e-6)

    def test_of_summed_log_probs_directions_exist_beyond_the_range_of_floats(self) -> None:
        at = np.linspace(-2000.0, -900.0, 5)
        _, directions, _ = arrows_of(Field(at, np.full((5, 5), -1.0), np.full((5, 5), 1.0)), 5, probability=True)
        assert np.hypot(*directions.T).tolist() == pytest.approx([1.0] * 25)
        assert directions[1].tolist() == pytest.approx([0.0, -1.0], abs=1e-12)  # the rejected answer is the rarer

    def test_beyond_the_range_of_floats_arrows_are_as_dark_as_within_it(self) -> None:
        """CPO's loss of answers of some hundred nats: p scaled by a constant scales all derivatives by it alike."""
        at = np.linspace(-10.0, 0.0, 5)
        s_w, s_l = np.meshgrid(at, at)
        pull = 0.1 / (1 + np.exp(0.1 * (s_w - s_l)))
        near, far = (
            levels(arrows_of(Field(at - by, -pull, pull), 5, probability=True)[2]).tolist() for by in (0.0, 750.0)
        )
        assert far == pytest.approx(near, abs=1e-9)
        assert len({round(level, 3) for level in far}) > 10

    def test_levels_span_four_decades_at_most(self) -> None:
        with np.errstate(divide="ignore"):
            sizes = np.log([1e-9, 1e-2, 1.0, 0.0])
        assert levels(sizes).tolist() == pytest.approx([0.0, 0.5, 1.0, 0.0])


def test_seeds_are_pooled_at_the_steps_that_they_share() -> None:
    one = shape(low=-4.0)
    two = shape(low=-5.0, steps=np.array([0.0, 8.0]), means=one.means[:, ::2] - 1.0, weights=one.weights[:, ::2],
                saturated=one.saturated[:, ::2])  # fmt: skip
    both = pooled([one, two])
    assert both.pairs == 12
    assert both.steps.tolist() == [0.0, 8.0]
    assert both.means[0].tolist() == [-2.5, -3.0]
    assert both.grid[0] == -5.0


def test_shares_near_the_ends_do_not_read_as_them() -> None:
    assert [percent(x) for x in (0.0, 0.002, 0.5, 0.998, 1.0)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]
    assert words_of(shape(weights=np.full((2, 3), np.nan)), 0) == "not known"


class TestSweep:
    def cells(self, count: int) -> list[SweepCurve]:
        alphas = np.linspace(-1.0, 2.0, count).tolist()
        return [SweepCurve(a, f"{a:g}", shape=shape(a)) for a in alphas] + [SweepCurve(3.0, "3", state="failed")]

    def test_a_panel_for_each_value_in_the_colour_of_its_curve(self) -> None:
        figure = shapes_figure(self.cells(4), subject="alphapo, beta 2.5, n = 6 held-out pairs")
        overlay, _, saturated, *small = figure.axes
        assert len(small) == 8  # a curve and a histogram each
        assert [ax.get_title(loc="left") for ax in small[::2]] == ["alpha \u22121", "alpha 0", "alpha 1", "alpha 2"]
        colours = [line.get_color() for line in lines(overlay, "curve")]
        assert [lines(ax, "curve")[0].get_color() for ax in small[::2]] == colours
        assert [line.get_ydata()[0] for line in lines(saturated, "end")] == [0.25, 0.004]
        assert "0.5, 25 %" in texts(figure)
        assert figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ") == (
            "Reward shape by alpha: alphapo, beta 2.5, n = 6 held-out pairs"
        )

    def test_a_straight_shape_over_a_wide_scale_has_no_kink(self) -> None:
        """A scale with a linear part would bend h(s) = s where that part ends."""
        straight = shape(0.0, low=-60.0, shape=np.linspace(-60.0, -1.0, 31))
        figure = shapes_figure([SweepCurve(0.0, "0", shape=straight), SweepCurve(1.0, "1", shape=shape(1.0))])
        figure.draw_without_rendering()
        overlay = figure.axes[0]
        fine = np.linspace(-3.0, -0.3, 28)
        slopes = np.diff(overlay.transData.transform(np.column_stack([fine, fine]))[:, 1])
        assert np.abs(np.diff(np.log(slopes))).max() < 0.06  # of asinh at most 0.1 x / (1 + x^2); a kink has log(2.3)
        shown = [text.get_text() for text in overlay.get_yticklabels()]
        assert {"\u22121", "\u221210", "0"} <= set(shown)

    def test_of_many_values_sixteen_are_drawn_and_the_title_says_so(self, tmp_path: Path) -> None:
        cells = self.cells(20)
        assert "16 of 20 values" in shapes_figure(cells).get_suptitle()
        figure = fields_figure(cells)
        assert "16 of 20 values" in figure.get_suptitle()
        assert sum(len(lines(ax, "path")) for ax in figure.axes) == 16

    def test_scores_in_several_units_share_no_axis(self) -> None:
        cells = [
            SweepCurve(None, "dpo", shape=shape(unit="log-ratio", low=-9.0)),
            SweepCurve(None, "simpo", shape=shape()),
        ]
        small = shapes_figure(cells, "objective").axes[3:]
        assert [ax.get_xlim()[0] for ax in small] == [-9.0, -9.0, -4.0, -4.0]
        assert [ax.get_xlabel() for ax in small[1::2]] == ["score s, log-ratio", "score s, log-prob per token"]

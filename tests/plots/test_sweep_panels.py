"""The report's other pictures: what they show, read from the figures; no pixels are compared."""

from __future__ import annotations

import warnings
import xml.etree.ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from alphapo_cli.plots import style
from alphapo_cli.plots.figures import SweepCurve
from alphapo_cli.plots.sweep_curves import displacement_figure
from alphapo_cli.plots.sweep_outcome import outcome_figure
from alphapo_cli.plots.sweep_panels import ending_figure, gradient_figure, quadrant_figure, trajectory_figure


def rows(scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "step": step, "displacement/chosen": -scale * step / 8, "rewards/margins": scale + step,
            "gradient_weight/chosen": -scale * (1 + step), "gradient_weight/rejected": scale,
        }
        for step in (0, 4, 8)
    ]  # fmt: skip


def cell(alpha: float | None, scale: float = 1.0, **changes: Any) -> SweepCurve:
    quadrants = {"up_down": 0.1, "up_up": 0.2, "down_down": 0.4, "down_up": 0.3}
    metrics = {f"displacement/quadrant/{k}": v for k, v in quadrants.items()}
    metrics |= {"kl/reference": scale, "gradient_weight/chosen": -9.0 * scale, "gradient_weight/rejected": scale}
    arguments: dict[str, Any] = {"label": f"alpha={alpha}", "rows": rows(scale), "metrics": metrics}
    return SweepCurve(alpha, **{**arguments, **changes})


def marks(ax: Axes, gid: str) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines() if line.get_gid() == gid]


def test_trajectories_run_from_step_0_to_the_mean_end_of_the_seeds() -> None:
    cells = [cell(0.5, 1.0), cell(0.5, 3.0), cell(1.0, 9.0, state="failed")]
    (ax,) = trajectory_figure(cells).axes
    assert marks(ax, "path") == [([0.0, -1.0, -2.0], [2.0, 6.0, 10.0])]
    assert marks(ax, "start")[0][0] == [0.0]
    assert marks(ax, "end")[0] == ([-2.0], [10.0])


def test_a_running_seed_does_not_cut_a_path_short() -> None:
    cells = [cell(0.5), cell(0.5, rows=rows()[:1], state="running")]
    assert marks(trajectory_figure(cells).axes[0], "end")[0] == ([-1.0], [9.0])


def test_the_quadrants_of_a_point_fill_both_sides_of_0() -> None:
    (ax,) = quadrant_figure([cell(-1.0), cell(2.0)]).axes
    bars: list[Any] = [patch for patch in ax.patches if patch.get_gid()]
    first = {bar.get_gid(): (bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars[:4]}
    assert first["up_down"] == pytest.approx((0.0, 0.1))
    assert first["up_up"] == pytest.approx((0.1, 0.3))
    assert first["down_down"] == pytest.approx((0.0, -0.4))
    assert first["down_up"] == pytest.approx((-0.4, -0.7))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["alpha=-1.0", "alpha=2.0"]
    assert ax.yaxis_inverted()


def test_gradient_weights_are_sizes_at_both_ends_of_training() -> None:
    (ax,) = gradient_figure([cell(0.0), cell(1.0, 2.0)]).axes
    assert marks(ax, "end") == [([0.0, 1.0], [9.0, 18.0]), ([0.0, 1.0], [1.0, 2.0])]
    assert marks(ax, "start") == [([0.0], [1.0]), ([1.0], [2.0])] * 2
    assert ax.get_yscale() == "linear"
    assert gradient_figure([cell(0.0), cell(1.0, 30.0)]).axes[0].get_yscale() == "log"


def test_one_metric_over_alpha_and_over_methods() -> None:
    (ax,) = ending_figure([cell(0.0), cell(1.0, 2.0), cell(1.0, 4.0)], "kl/reference", "KL", "nats").axes
    assert marks(ax, "mean") == [([0.0], [1.0]), ([1.0], [3.0])]
    assert marks(ax, "seeds") == [([1.0, 1.0], [2.0, 4.0])]
    methods = [cell(None, label=label) for label in ("dpo", "simpo")]
    (ax,) = ending_figure(methods, "kl/reference", "KL", "nats", "objective").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["dpo", "simpo"]
    assert len(ax.get_lines()) == 2  # dots alone: a line between methods would mean something


@pytest.mark.slow
@pytest.mark.parametrize("cells", [[], [cell(0.0, rows=[], metrics={}, state="failed")], [cell(None, label="dpo")]])
def test_little_or_nothing_to_show(cells: list[SweepCurve], tmp_path: Path) -> None:
    figures = [make(cells) for make in (trajectory_figure, quadrant_figure, gradient_figure)]
    for i, figure in enumerate([*figures, ending_figure(cells, "kl/reference", "KL", "nats")]):
        style.save(figure, tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")


def test_an_svg_is_the_same_twice_and_keeps_its_text(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        style.save(trajectory_figure([cell(0.5)]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = "".join(xml.etree.ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert "reward margin" in text
    assert "alpha=0.5" in text


@pytest.mark.slow
@pytest.mark.parametrize("alphas", [True, False], ids=["alphas", "methods"])
def test_sixty_values_find_room_in_every_picture(alphas: bool, tmp_path: Path) -> None:
    cells = [cell(i / 30 if alphas else None, 1.0 + i, label=f"method_with_a_name_{i}") for i in range(60)]
    figures = {
        "outcome": outcome_figure(cells, "kl/reference"),
        "displacement": displacement_figure(cells),
        "trajectory": trajectory_figure(cells),
        "quadrants": quadrant_figure(cells),
        "gradient": gradient_figure(cells),
        "ending": ending_figure(cells, "kl/reference", "KL", "nats"),
    }
    for name, figure in figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib's word for panels that were squeezed to nothing
            style.save(figure, tmp_path / f"{name}.png")
        room = figure.bbox
        boxes = [ax.get_window_extent() for ax in figure.axes if ax.get_label() != "<colorbar>"]
        assert all(box.width > 0.25 * room.width and box.height > 100 for box in boxes), name
        legends = [*figure.legends, *(found for ax in figure.axes if (found := ax.get_legend()))]
        texts = [text for legend in legends for text in legend.get_texts()]
        for ax in figure.axes:
            for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
                shown = [label for label in labels if label.get_text().startswith("method")]
                edges = sorted(
                    e.x0 if label.get_rotation() else e.y0 for label in shown if (e := label.get_tightbbox())
                )
                assert all(b - a > 12 for a, b in pairwise(edges)), name  # 200 dpi: text of 6 points is 17 pixels high
                texts += shown
        assert all(room.x0 <= box.x0 and box.x1 <= room.x1 for box in (t.get_window_extent() for t in texts)), name
        assert all(room.y0 <= box.y0 and box.y1 <= room.y1 for box in (t.get_window_extent() for t in texts)), name

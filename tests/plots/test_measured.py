"""The picture of a measurement."""

from __future__ import annotations

import numpy as np

from alphapo_cli.plots.measured import measured_figure, measured_picture


def test_every_pair_that_has_both_values_is_a_point(tmp_path):
    moved = np.array([[-0.1, 0.2, np.nan, 0.3], [0.1, np.nan, 0.2, -0.4]])
    scores = {"ches_normalised": np.array([1.0, 2.0, 3.0, np.nan])}
    figure = measured_figure(moved, scores, "a model")
    points = [len([row for c in ax.collections for row in np.asarray(c.get_offsets())]) for ax in figure.axes]
    assert points == [2, 2, 0]
    assert "not measured" in [text.get_text() for text in figure.axes[2].texts]
    measured_picture(moved, scores, tmp_path / "picture.png", "a model")
    assert (tmp_path / "picture.png").stat().st_size > 0

"""The pictures of a measurement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from alphapo_cli.errors import in_words
from alphapo_cli.plots.measured import measured_picture
from alphapo_cli.plots.reward_shape import RewardShape, reward_shape_picture
from alphapo_cli.probe.measured import Comparison
from alphapo_cli.probe.pair_scores import Numbers
from alphapo_cli.stages.measuring.prepare import Measurement

_GRID = 401


def draw(measurement: Measurement, comparison: Comparison) -> list[str]:
    """Draw measured.png and shape.png.

    Args:
        measurement: what was measured.
        comparison: its values.

    Returns:
        A note for each picture that could not be drawn, which must not fail the measurement.

    Raises:
        OSError: the disk refuses a file.
    """
    now, start, directory = comparison.now, comparison.start, measurement.directory
    name = measurement.measured.name
    moved = (now.sums[:2] - start.sums[:2]) / np.maximum(now.lengths[:2], 1)
    moved = np.where(now.lengths[:2] > 0, moved, np.nan)
    makers: dict[str, Callable[[], None]] = {
        directory.picture.name: lambda: measured_picture(moved, comparison.scores, directory.picture, name)
    }
    if not comparison.unknown:
        shape = reward_shape(measurement, comparison)
        makers[directory.shape.name] = lambda: reward_shape_picture(shape, directory.shape, f"{name}: its reward")
    notes = []
    for file, make in makers.items():
        try:
            make()
        except OSError:
            raise
        except Exception as error:
            notes.append(f"{file} was not drawn ({in_words(error)})")
    return notes


def reward_shape(measurement: Measurement, comparison: Comparison) -> RewardShape:
    """The objective's reward over the scores that the answers have, at the progress of the measured model.

    Args:
        measurement: what was measured.
        comparison: its values.

    Returns:
        Reward and slope on a grid between the extreme scores, and the scores.
    """
    start, now = (_present(values.scores, values.lengths) for values in (comparison.start, comparison.now))
    every = np.concatenate([start.ravel(), now.ravel()])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if every.size else (-1.0, 0.0)
    room = 0.05 * (high - low) or 0.5
    grid = torch.linspace(low - room, high + room, _GRID, dtype=torch.float64, requires_grad=True)
    objective = measurement.objective.at(measurement.measured.context)
    reward = objective.rewards(grid.unsqueeze(0))[0]
    (slope,) = torch.autograd.grad(reward.sum(), grid)
    return RewardShape(grid.detach().numpy(), reward.detach().numpy(), slope.numpy(), start, now)


def _present(scores: Numbers, lengths: Numbers) -> Numbers:
    """[2, P] scores of chosen and rejected answers, NaN for absent ones."""
    return np.where(lengths[:2] > 0, scores[:2], np.nan)

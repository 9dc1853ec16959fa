"""The pictures of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from alphapo_cli.errors import in_words
from alphapo_cli.objective.objective import Objective
from alphapo_cli.plots.measured import measured_picture
from alphapo_cli.plots.reward_shape import reward_shape_picture
from alphapo_cli.plots.shape_data import Answers, RewardShape
from alphapo_cli.probe.measured import Comparison
from alphapo_cli.probe.pair_scores import Numbers
from alphapo_cli.stages.measuring.prepare import Measurement
from alphapo_cli.stages.reward_shape import describe


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
    notes = []
    if not comparison.unknown:
        shape = reward_shape(measurement, comparison)
        if isinstance(shape, str):
            notes.append(f"{directory.shape.name} was not drawn: {shape}")
        else:
            makers[directory.shape.name] = lambda: reward_shape_picture(
                shape,
                directory.shape,
                f"Reward shape: {name}, {_words(measurement.objective)}, n = {shape.pairs:,} pairs",
            )
    for file, make in makers.items():
        try:
            make()
        except OSError:
            raise
        except Exception as error:
            notes.append(f"{file} was not drawn ({in_words(error)})")
    return notes


def reward_shape(measurement: Measurement, comparison: Comparison) -> RewardShape | str:
    """The objective's shape over the scores that the answers have, at the progress of the measured model.

    Args:
        measurement: what was measured.
        comparison: its values.

    Returns:
        The description; where there is nothing to draw, a sentence that says why.
    """
    objective, step = measurement.objective, comparison.step
    readings = [
        Answers(at, *(_present(part, values.lengths) for part in (values.scores, values.gradients)))
        for at, values in ((0, comparison.start), (step or 0, comparison.now))
    ]
    found = describe(objective, (objective.start, measurement.measured.context), readings)
    return found if step is not None or isinstance(found, str) else replace(found, names=("start", "now"))


def _present(scores: Numbers, lengths: Numbers) -> Numbers:
    """[2, P] values of chosen and rejected answers, NaN for absent ones."""
    return np.where(lengths[:2] > 0, scores[:2], np.nan)


def _words(objective: Objective) -> str:
    """The objective with its numbers, as `alphapo, alpha 0.25, beta 2.5`."""
    alpha = objective.parts["shape"].settings.get("alpha")
    return ", ".join([objective.name, *([] if alpha is None else [f"alpha {alpha:g}"]), f"beta {objective.beta:g}"])

"""An objective's shape as a curve over the score, and the derivatives of its loss as a field over two scores.

Pure functions of an objective, without data: what the pictures of a run's reward shape and its gradient field are made of.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from alphapo_cli.errors import UsageError
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective

Numbers = npt.NDArray[np.float64]

# A gradient weight below this share of `undecided_weight` counts as saturated.
SATURATED = 0.01


def curve(objective: Objective, scores: Numbers, context: StepContext | None = None) -> tuple[Numbers, Numbers]:
    """The shape and its slope.

    Args:
        objective: the objective.
        scores: [N] scores s.
        context: at which a scheduled parameter is read; None: before the first step.

    Returns:
        h(s) and h'(s), [N] each, without beta.
    """
    scheduled = objective.at(context or objective.start)
    s = torch.as_tensor(scores, dtype=torch.float64)
    h = scheduled.shape_function(s, scheduled.score.score_kind)
    return h.numpy().copy(), scheduled.slopes(s).numpy()


def gradients(
    objective: Objective, chosen: Numbers, rejected: Numbers, context: StepContext | None = None
) -> tuple[Numbers, Numbers]:
    """Differentiate the preference term by the scores of pairs that have nothing but scores.

    Args:
        objective: one without `field_obstacle`.
        chosen: [...] scores s_w.
        rejected: scores s_l, of the same shape.
        context: when the loss is evaluated; None: before the first step.

    Returns:
        d loss / d s_w and d loss / d s_l, of the shape of the scores.

    Raises:
        UsageError: the loss reads more of a pair than its scores.
    """
    scores = torch.as_tensor(np.stack([chosen.ravel(), rejected.ravel()]), dtype=torch.float64)
    found = objective.score_gradients(scores, None, context).numpy()
    return found[0].reshape(chosen.shape), found[1].reshape(chosen.shape)


def no_preference(objective: Objective) -> str | None:
    """Why a score has no gradient at all under this objective; None where it has one."""
    if objective.link.name == "none" or not objective.preference:
        return "the loss has no preference term, so it pulls at no score"
    return None


def field_obstacle(objective: Objective) -> str | None:
    """Why the loss of a pair is no function of its two scores alone, so that there is no one field; None where it is."""
    nothing = no_preference(objective)
    if nothing is not None:
        return nothing
    every = objective.reads_all
    if every is not None:
        return f"{every.description} compares all answers of a row, which are more than two"
    if objective.needs_mismatched:
        return "the loss reads an answer to another prompt beside the two of a pair"
    states = sorted(kind for kind in objective.start.states if kind != "schedule")
    if states:
        have = "has" if len(states) == 1 else "have"
        return f"the objective's {' and '.join(states)} {have} a memory of training, so that the field changes with every step"
    try:
        gradients(objective, np.zeros(1), np.zeros(1))
    except UsageError:
        columns = ", ".join(objective.columns)
        return "the loss reads more of a pair than its two scores" + (f" ({columns})" if columns else "")
    return None


def undecided_weight(objective: Objective, context: StepContext | None = None) -> float | None:
    """The gradient weight of a pair whose scores are both 0, the larger of its two sides.

    There the slope of the shape is h'(0), 1 for most, and for a score that is a log-ratio the policy is its reference. It
    is what weights are compared with: unlike the largest weight possible it exists for every link, also for those whose
    derivative has no bound, and means the same for every shape.

    Args:
        objective: the objective.
        context: when the loss is evaluated; None: before the first step.

    Returns:
        max(|d loss / d s_w|, |d loss / d s_l|); None where the loss reads more than scores, or it is 0.
    """
    if field_obstacle(objective) is not None:
        return None
    largest = max(abs(float(side[0])) for side in gradients(objective, np.zeros(1), np.zeros(1), context))
    return largest or None

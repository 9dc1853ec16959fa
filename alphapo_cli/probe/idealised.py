"""The ranking accuracy that DPO's optimum would have (2405.19534), beside which that of a trained model can be read."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import ProbeValues
from alphapo_cli.probe.pair_scores import idealised_margin

MARGIN = "idealised_margin"
WIN_PROBABILITY = "win_probability"


def preference_column(objective: Objective, columns: Collection[str]) -> str | None:
    """The column with the probability that the chosen answer is preferred.

    Args:
        objective: the objective; what is no relative of DPO, as it reads no reference, has another optimum.
        columns: those that the pairs have.

    Returns:
        `objective.label_column` where the pairs have it, else `WIN_PROBABILITY` where they do and the objective reads a
        reference; None where there is no such column.
    """
    if objective.label_column is not None:
        return objective.label_column if objective.label_column in columns else None
    return WIN_PROBABILITY if objective.needs_reference and WIN_PROBABILITY in columns else None


def idealised_accuracies(start: ProbeValues, pairs: TokenPairs, objective: Objective) -> dict[str, float | None]:
    """Share of pairs that DPO's optimum at the objective's beta ranks right, by summed log-probs and by means per token.

    Args:
        start: values under the model before training, DPO's reference unless another one is named.
        pairs: the pairs, with their columns.
        objective: its beta, and the column of preferences.

    Returns:
        Metric -> value, None where no pair with both answers has a probability; nothing without such a column.
    """
    column = preference_column(objective, pairs.columns)
    if column is None:
        return {}
    both = (start.lengths[:2] > 0).all(axis=0)
    means = start.sums / np.maximum(start.lengths, 1)
    row: dict[str, float | None] = {}
    for key, values in (("", start.sums), ("_length_normalised", means)):
        margin = idealised_margin((values[0] - values[1])[both], pairs.columns[column][both], objective.beta)
        known = margin[~np.isnan(margin)]
        right = (known > 0) + 0.5 * (known == 0)
        row[f"ranking/idealised_accuracy{key}"] = float(right.mean()) if known.size else None
    return row

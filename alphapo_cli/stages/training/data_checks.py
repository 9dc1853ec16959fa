"""Checks that tokenised pairs hold what an objective reads."""

from __future__ import annotations

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.objective.data_requirements import check_columns, check_sides
from alphapo_cli.objective.objective import Objective
from alphapo_cli.stages.training.extra_models import check_guide, expected_columns


def check_pairs(cfg: TrainConfig, objective: Objective, pairs: TokenPairs, what: str) -> None:
    """Check answers, guide and columns of the pairs.

    Args:
        cfg: the run's configuration.
        objective: the objective.
        pairs: the pairs.
        what: what messages call them.

    Raises:
        UsageError: the objective reads what the pairs do not hold.
    """
    check_sides(objective, pairs.num_sides, pairs.unpaired, what, pairs.columns)
    check_guide(cfg, objective, pairs, what)
    sides = objective.sides(pairs.num_sides)
    check_columns(objective, expected_columns(cfg, pairs), (pairs.index + 1).tolist(), what, sides)

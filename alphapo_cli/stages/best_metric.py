"""Which metric of the probe says which step was best, and in which direction; imports nothing heavy."""

from __future__ import annotations

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.tracking.metrics import BOUNDS, EVAL, HIGHER_IS_BETTER, LOWER_IS_BETTER, OBJECTIVE, lookup

KEY = "trainer.metric_for_best_model"


def greater_is_better(cfg: TrainConfig) -> bool | None:
    """Whether the step with the greatest value of the metric is best.

    Args:
        cfg: the configuration of a training.

    Returns:
        False: the one with the least value; None: no metric is named.

    Raises:
        UsageError: the probe never measures that metric, or nobody said in which direction it is better.
    """
    metric = cfg.trainer.metric_for_best_model
    if metric is None:
        return None
    try:
        lookup(metric)
    except UsageError as error:
        raise UsageError(f"{KEY}={metric}: {error}") from error
    if metric.startswith("train/") or metric in {**BOUNDS, **EVAL, **OBJECTIVE}:
        raise UsageError(
            f"{KEY}={metric}: not measured on the probe, which is the same at every step; name one that is, such as "
            "glassbox/true_win_rate or rewards/accuracies"
        )
    if cfg.trainer.greater_is_better is not None:
        return cfg.trainer.greater_is_better
    if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        raise UsageError(f"{KEY}={metric}: is more of it better? Add trainer.greater_is_better=true, or false")
    return metric in HIGHER_IS_BETTER

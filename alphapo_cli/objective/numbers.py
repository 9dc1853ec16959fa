"""Rules for an objective's numbers that need its parts: which gamma counts, what a schedule may move,
and what does not go with more than two answers."""

from __future__ import annotations

from collections.abc import Mapping

from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.parts import Bound
from alphapo_cli.objective_config import OPTIONAL
from alphapo_cli.schema import ObjectiveConfig


def absolute_gamma(cfg: ObjectiveConfig) -> float:
    """gamma in units of the reward, whichever of the two ways it was given; 0 when neither was.

    Raises:
        ConfigError: both were given.
    """
    if cfg.gamma is not None and cfg.gamma_beta_ratio is not None:
        raise ConfigError(
            "objective.gamma and objective.gamma_beta_ratio are both set: give one (gamma = beta x ratio)"
        )
    if cfg.gamma is not None:
        return cfg.gamma
    return cfg.beta * cfg.gamma_beta_ratio if cfg.gamma_beta_ratio is not None else 0.0


def check_schedule(parts: Mapping[str, Bound]) -> None:
    """Raises ConfigError: the schedule's parameter is not there, or is no number."""
    of = parts["schedule"].settings.get("of")
    if of is None:
        return
    kind, _, parameter = str(of).partition(".")
    known = [
        f"{k}.{name}"
        for k, bound in parts.items()
        for name, value in bound.settings.items()
        if k != "schedule" and isinstance(value, float)
    ]
    if f"{kind}.{parameter}" not in known:
        raise ConfigError(
            f"objective.schedule.of={of}: this objective has no such number (it has: {', '.join(known) or 'none'}); "
            "for shape.alpha choose objective/shape=power"
        )


def check_readers(cfg: ObjectiveConfig, parts: Mapping[str, Bound]) -> None:
    """Raises ConfigError: a setting about two answers stands beside a part that reads more of them."""
    more = next((bound for bound in parts.values() if bound.part.sides != 2), None)
    if more is None:
        return
    if parts["token"].part.name != OPTIONAL["token"]:
        raise ConfigError(
            f"objective/token={parts['token'].part.name}: token weights compare two answers, and {more.words} reads more; "
            f"take objective/token={OPTIONAL['token']}"
        )
    if more.part.sides is None and (cfg.label_smoothing or cfg.label_column is not None):
        setting = "label_smoothing" if cfg.label_smoothing else "label_column"
        raise ConfigError(
            f"objective.{setting}={getattr(cfg, setting)}: {more.words} reads the scores of all answers and no label that "
            f"may be wrong; leave it out"
        )

"""Rules for an objective's numbers that need its parts: which gamma counts, what a schedule may move, what is no loss,
and what does not go with more than two answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch

from alphapo_cli.config.objective_parts import OPTIONAL
from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.inputs import PartState, StepContext
from alphapo_cli.objective.part import BoundPart


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


def check_loss(cfg: ObjectiveConfig, parts: Mapping[str, BoundPart]) -> None:
    """Raises ConfigError: nothing is left to minimise, or a margin part that the link does not read."""
    link, margin = parts["link"].part, parts["margin"].part
    if not link.needs_rejected and not cfg.nll:
        raise ConfigError(
            f"objective.nll=0 with objective/link={link.name}: no loss is left; set objective.nll above 0 or choose another link"
        )
    if not cfg.preference and not cfg.nll and parts["regulariser"].part.name == OPTIONAL["regulariser"]:
        raise ConfigError("objective.preference=0 with objective.nll=0: no loss is left; set one of them above 0")
    if not link.reads_margin and margin.name != OPTIONAL["margin"]:
        raise ConfigError(
            f"objective/margin={margin.name}: objective/link={link.name} reads rewards and no margin; "
            "set objective/margin=none, or choose a link of the difference such as logistic"
        )


def check_schedule(parts: Mapping[str, BoundPart]) -> None:
    """A schedule may move a number that a part reads at every step.

    Not those of token weights, with which the reference's sums were made once, nor those where a state begins.

    Raises:
        ConfigError: the schedule's parameter is none of them.
    """
    of = parts["schedule"].settings.get("of")
    if of is None:
        return
    kind, _, parameter = str(of).partition(".")
    known = [
        f"{k}.{name}"
        for k, bound in parts.items()
        for name, value in bound.settings.items()
        if k not in ("schedule", "token") and isinstance(value, float) and name not in _beginnings(bound)
    ]
    if f"{kind}.{parameter}" not in known:
        raise ConfigError(
            f"objective.schedule.of={of}: this objective has no such number (it has: {', '.join(known) or 'none'}); "
            "for shape.alpha choose objective/shape=power"
        )


def _beginnings(bound: BoundPart) -> set[str]:
    """The settings that only say where a part's state begins: those that its `initial` names."""
    if bound.part.stateful is None:
        return set()
    named = inspect.signature(bound.part.stateful.initial).parameters.values()
    return {p.name for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY}


def ends(schedule: BoundPart, states: Mapping[str, PartState]) -> list[StepContext]:
    """Moments at which the schedule's parameter is as far as it goes."""
    if "schedule" not in states:
        return [StepContext(1.0, states)]
    values = (torch.tensor(float(schedule.settings[name]), dtype=torch.float64) for name in ("low", "high"))
    return [StepContext(1.0, {**states, "schedule": {"value": value}}) for value in values]


def check_readers(cfg: ObjectiveConfig, parts: Mapping[str, BoundPart]) -> None:
    """Raises ConfigError: a setting about two answers beside a part that reads more, or about tokens beside sums."""
    score, token = parts["score"], parts["token"].part.name
    if score.columns and token != OPTIONAL["token"]:
        raise ConfigError(
            f"objective/token={token}: {score.words} reads sums over whole answers ({', '.join(score.columns)}), in which "
            f"every token counts once; take objective/token={OPTIONAL['token']}"
        )
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

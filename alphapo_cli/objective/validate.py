"""Checks of an objective's numbers that need its parts.

They say which gamma counts, what a schedule may move, when no loss is left, and what excludes more than two answers.
"""

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
    """Return gamma in units of the reward, from either of its two settings; 0 if neither is set.

    Raises:
        ConfigError: both settings are given.
    """
    if cfg.gamma is not None and cfg.gamma_beta_ratio is not None:
        raise ConfigError(
            "objective.gamma and objective.gamma_beta_ratio are both set: give one (gamma = beta x ratio)"
        )
    if cfg.gamma is not None:
        return cfg.gamma
    return cfg.beta * cfg.gamma_beta_ratio if cfg.gamma_beta_ratio is not None else 0.0


def check_loss(cfg: ObjectiveConfig, parts: Mapping[str, BoundPart]) -> None:
    """Check that a loss is left and that the link reads the margin part.

    Raises:
        ConfigError: nothing is left to minimise, or there is a margin part that the link does not read.
    """
    link, margin = parts["link"].part, parts["margin"].part
    if not link.needs_rejected and not cfg.nll:
        raise ConfigError(
            f"objective.nll=0 with objective/link={link.name}: no loss is left; set objective.nll above 0 or choose another link"
        )
    if not cfg.preference and not cfg.nll and parts["regulariser"].part.name == OPTIONAL["regulariser"]:
        raise ConfigError("objective.preference=0 with objective.nll=0: no loss is left; set one of them above 0")
    if not link.reads_margin and margin.name != OPTIONAL["margin"]:
        raise ConfigError(
            f"objective/margin={margin.name}: objective/link={link.name} reads no margin; "
            "set objective/margin=none, or choose a link of the difference such as logistic"
        )


def check_schedule(parts: Mapping[str, BoundPart]) -> None:
    """Check that the schedule moves a number that a part reads at every step.

    Settings of token weights are not (the reference's sums are computed once with them), nor are initial values.

    Raises:
        ConfigError: the schedule's parameter is not such a number.
    """
    of = parts["schedule"].settings.get("of")
    if of is None:
        return
    kind, _, parameter = str(of).partition(".")
    known = [
        f"{k}.{name}"
        for k, bound in parts.items()
        for name, value in bound.settings.items()
        if k not in ("schedule", "token") and isinstance(value, float) and name not in _initial_settings(bound)
    ]
    if f"{kind}.{parameter}" not in known:
        raise ConfigError(
            f"objective.schedule.of={of}: this objective has no such number (it has: {', '.join(known) or 'none'}); "
            "for shape.alpha choose objective/shape=power"
        )


def _initial_settings(bound: BoundPart) -> set[str]:
    """Settings that are only initial values of a part's state: those that its `initial` names."""
    if bound.part.stateful is None:
        return set()
    named = inspect.signature(bound.part.stateful.initial).parameters.values()
    return {p.name for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY}


def ends(schedule: BoundPart, states: Mapping[str, PartState]) -> list[StepContext]:
    """Contexts in which the schedule's parameter is at the ends of its range."""
    if "schedule" not in states:
        return [StepContext(1.0, states)]
    values = (torch.tensor(float(schedule.settings[name]), dtype=torch.float64) for name in ("low", "high"))
    return [StepContext(1.0, {**states, "schedule": {"value": value}}) for value in values]


def check_readers(cfg: ObjectiveConfig, parts: Mapping[str, BoundPart]) -> None:
    """Check that settings for two answers, for single tokens or for an uncertain label fit the parts.

    Raises:
        ConfigError: token weights go with a score of sums, with a part that reads more than two answers, or with one
            that divides by their sum, which may be 0; or an uncertain label with a link that reads the data's own
            judgement.
    """
    _check_token_weights(parts)
    link = parts["link"]
    if link.columns and (cfg.label_smoothing or cfg.label_column is not None):
        setting = "label_smoothing" if cfg.label_smoothing else "label_column"
        raise ConfigError(
            f"objective.{setting}={getattr(cfg, setting)}: {link.description} reads how good the answers are "
            f"({', '.join(link.columns)}) and no label that may be wrong; leave it out"
        )


def _check_token_weights(parts: Mapping[str, BoundPart]) -> None:
    score, token, none = parts["score"], parts["token"], OPTIONAL["token"]
    if token.part.name == none:
        return
    what = f"objective/token={token.part.name}"
    if score.columns:
        raise ConfigError(
            f"{what}: {score.description} reads sums over whole answers ({', '.join(score.columns)}), in which every token "
            f"counts once; take objective/token={none}"
        )
    more = next((bound for bound in parts.values() if bound.part.sides != 2), None)
    if more is not None:
        raise ConfigError(
            f"{what}: token weights compare two answers, and {more.description} reads more; take objective/token={none}"
        )
    divider = next((bound for bound in parts.values() if bound.part.divides), None)
    if token.part.signed and divider is not None:
        instead = OPTIONAL.get(divider.part.kind, "ratio_sum")
        raise ConfigError(
            f"{what}: its weights may be 0 or below, and {divider.description} divides by their sum; take "
            f"objective/{divider.part.kind}={instead} or objective/token={none}"
        )

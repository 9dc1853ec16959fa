"""From the configuration of an objective to an Objective: parts found, settings checked, and evaluated once."""

from __future__ import annotations

import torch

from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.modeling.layout.batch import CompletionTokens
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.objective.part import TABLES, find
from alphapo_cli.objective.parts import (  # noqa: F401  (importing them fills the tables)
    link,
    listwise,
    margin,
    parameter_schedule,
    pointwise,
    regulariser,
    score,
    shape,
    stateful_links,
    stateful_margins,
    token_weight,
    weight,
)
from alphapo_cli.objective.validate import absolute_gamma, check_loss, check_readers, check_schedule, ends


def build(cfg: ObjectiveConfig) -> Objective:
    """The objective that a configuration describes; every parameter is tried once, so a bad value is found here.

    Raises:
        ConfigError: an unknown part or parameter, a value that a part refuses, gamma given twice, or no loss at all.
    """
    parts = {kind: find(kind, getattr(cfg, kind)).bind(getattr(cfg, kind)) for kind in TABLES}
    check_loss(cfg, parts)
    check_schedule(parts)
    check_readers(cfg, parts)
    objective = Objective(
        name=cfg.name,
        parts=parts,
        beta=cfg.beta,
        gamma=absolute_gamma(cfg),
        label_smoothing=cfg.label_smoothing,
        label_model=cfg.label_model,
        label_column=cfg.label_column,
        preference=cfg.preference,
        nll=cfg.nll,
        nll_scope=cfg.nll_scope,
        reference_every=cfg.reference_every,
        reference_mix=cfg.reference_mix,
    )
    if objective.reference_every is not None and not objective.needs_reference:
        raise ConfigError(
            f"objective.reference_every={cfg.reference_every}: objective '{cfg.name}' has no reference; set it to null"
        )
    sides = max(2, objective.sides(2))
    trial = torch.full((sides, 1), -1.0)
    columns = {name: torch.full((1,), 0.5) for name in objective.columns_of(sides)}
    tokens = CompletionTokens(torch.arange(sides), torch.arange(sides), 1, sides, guide=torch.zeros(sides))
    one = TokenLogProbs(trial[:, 0], tokens)
    answers = AnswerLogProbs(
        trial, torch.ones_like(trial), trial, columns=columns, per_token=one, log_p2=trial, kl=torch.zeros_like(trial)
    )
    objective(answers)
    for context in ends(parts["schedule"], objective.start.states):
        try:
            objective(answers, context)
        except ConfigError as error:
            raise ConfigError(f"{error}; objective.schedule moves it there") from error
    return objective

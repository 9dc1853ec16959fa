"""Builds an Objective from its configuration: looks parts up, checks settings, evaluates the result once."""

from __future__ import annotations

import torch

from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.modeling.layout.batch import CompletionTokens
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.objective.part import TABLES, find
from alphapo_cli.objective.parts import (  # noqa: F401  (the import registers the parts)
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


def build(cfg: ObjectiveConfig, seed: int = 0) -> Objective:
    """Return the objective that a configuration describes; one evaluation finds values that a part refuses.

    Args:
        cfg: the objective's configuration.
        seed: the run's seed, for parts that draw at random.

    Returns:
        The objective.

    Raises:
        ConfigError: a part or parameter is unknown, a part refuses a value, gamma is given twice, or no loss is left.
    """
    parts = {kind: find(kind, getattr(cfg, kind)).bind(getattr(cfg, kind), seed) for kind in TABLES}
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
    logps = torch.full((sides, 1), -1.0)
    columns = {name: torch.full((1,), 0.5) for name in objective.columns_of(sides)}
    tokens = CompletionTokens(torch.arange(sides), torch.arange(sides), 1, sides, guide=torch.zeros(sides))
    per_token = TokenLogProbs(logps[:, 0], tokens)
    answers = AnswerLogProbs(
        logps,
        torch.ones_like(logps),
        logps,
        columns=columns,
        per_token=per_token,
        log_p2=logps,
        kl=torch.zeros_like(logps),
    )
    objective(answers)
    for context in ends(parts["schedule"], objective.start.states):
        try:
            objective(answers, context)
        except ConfigError as error:
            raise ConfigError(f"{error}; objective.schedule moves it there") from error
    return objective

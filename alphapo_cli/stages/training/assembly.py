"""Everything that needs the policy as it is before its first step, put together as `TrainingInputs`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.objective import Objective
from alphapo_cli.stages.training.extra_models import guided, running_reference
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.training.inputs import TrainingInputs


@dataclass(frozen=True)
class RunInputs:
    """What a run trains from and is measured on. P probe pairs, K answers of each."""

    training: TrainingInputs
    tokenizer: Any
    probe: TokenPairs  # P, with the columns and token values that a guide model gave
    probe_reference: npt.NDArray[np.float64] | None  # [K, P] nats, summed log-probs; None: the objective reads none
    data_key: str  # hash of the pairs' token ids
    start: str  # where the weights come from, in words


def run_inputs(
    cfg: TrainConfig, builder: InputsBuilder, start: ModelAndData, policy: PolicyModel, objective: Objective, steps: int,
    log: Callable[[str], None],
) -> RunInputs:  # fmt: skip
    """Score what the objective compares with, from the cache where it is there.

    Args:
        cfg: the run's configuration.
        builder: makes and keeps what runs have in common.
        start: model and data of this run.
        policy: the model before its first step, where it trains.
        objective: decides which models are read beside the policy.
        steps: optimizer steps of the run.
        log: takes a note to the user.

    Raises:
        UsageError: a model that is named beside the policy does not go with it.
    """
    start, guide = guided(cfg, start, builder, policy, objective)
    reference = builder.reference(cfg, start, policy, objective, guide) if objective.needs_reference else (None, None)
    moving, kl_from = running_reference(cfg, builder, policy, objective, steps, log)
    training = TrainingInputs(
        policy=policy, objective=objective, pairs=start.data.train, pad_id=start.tokenizer.pad_token_id,
        reference=reference[0], moving=moving, kl_from=kl_from,
    )  # fmt: skip
    return RunInputs(training, start.tokenizer, start.data.probe, reference[1], start.data.key, start.start)

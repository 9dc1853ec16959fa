"""Assembly of `TrainingInputs` from the policy before its first step: reference log-probs and the models beside it."""

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
from alphapo_cli.stages.training.extra_models import running_reference, with_guide
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.training.inputs import TrainingInputs


@dataclass(frozen=True)
class RunInputs:
    """Inputs of training and of its measurements, for P probe pairs with K answers each."""

    training: TrainingInputs
    tokenizer: Any
    probe: TokenPairs  # [P], with the columns and token log-ratios of a guide model
    probe_reference: (
        npt.NDArray[np.float64] | None
    )  # [K, P] summed log-probs in nats; None: the objective needs no reference
    data_key: str  # hash of the pairs' token ids
    start: str  # where the weights come from, for messages


def run_inputs(
    cfg: TrainConfig, builder: InputsBuilder, start: ModelAndData, policy: PolicyModel, objective: Objective, steps: int,
    log: Callable[[str], None],
) -> RunInputs:  # fmt: skip
    """Compute what the objective needs of reference and guide, or read it from the cache.

    Args:
        cfg: the run's configuration.
        builder: provides what runs have in common.
        start: model and data of this run.
        policy: the model before its first step, on the device on which it trains.
        objective: decides which models beside the policy are needed.
        steps: optimizer steps of the run.
        log: prints a note to the user.

    Returns:
        The inputs.

    Raises:
        UsageError: `model.reference` or `model.guide` is not compatible with the policy.
    """
    start, guide = with_guide(cfg, start, builder, policy, objective)
    reference = builder.reference(cfg, start, policy, objective, guide) if objective.needs_reference else (None, None)
    moving, kl_from = running_reference(cfg, builder, policy, objective, steps, log)
    training = TrainingInputs(
        policy=policy, objective=objective, pairs=start.data.train, pad_id=start.pad_id,
        reference=reference[0], moving=moving, kl_from=kl_from,
    )  # fmt: skip
    return RunInputs(training, start.tokenizer, start.data.probe, reference[1], start.data.key, start.start)

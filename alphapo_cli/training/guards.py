"""Guards: limits that end a run early, each with a reason and a remedy in its message.

A broken run (weights, loss or log-probs that are not finite) has failed. A run that crossed a limit of `guard.*` is
stopped: it is kept and reported, not retried, and no failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphapo_cli.config.schema import GuardConfig
from alphapo_cli.errors import AlphapoError
from alphapo_cli.runtime.distributed import Processes

# What a number can be that is not finite, as it is printed.
_NOT_FINITE = (("nan", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf))


def not_finite(values: Any) -> str | None:
    """Name the kinds of numbers among `values` that are not finite.

    Args:
        values: an array of numpy, or a number.

    Returns:
        "nan", "inf", "-inf" or several of them ("nan and inf"); None if all values are finite.
    """
    return " and ".join(name for name, is_one in _NOT_FINITE if is_one(values).any()) or None


def broken(what: str, value: str, step: int) -> str:
    """Message of a run whose numbers are not finite any more; `value` is what `not_finite` says of them."""
    return (
        f"{what} is {value} at step {step}: lower trainer.learning_rate or objective.beta, or clip "
        "harder by a smaller trainer.max_grad_norm (0 clips nothing)"
    )


def check_weights(model: Any, step: int, processes: Processes | None = None) -> None:
    """Check that all weights of `model` are finite: what each process holds of them. Collective.

    Raises:
        AlphapoError: a weight is not finite, in this process or another one.
    """
    import torch

    from alphapo_cli.modeling.sharding import at_rest, local_part

    at_rest(model)
    fault = None
    for name, parameter in model.named_parameters():
        weights = local_part(parameter)
        finite = torch.isfinite(weights)
        if not finite.all():
            kinds = not_finite(weights[~finite].float().cpu().numpy())
            fault = broken(f"weight {name}", str(kinds), step)
            break
    fault = (processes or Processes()).same(fault)
    if fault is not None:
        raise AlphapoError(fault)


def crossed(cfg: GuardConfig, row: Mapping[str, Any], step: int) -> str | None:
    """Message of the limit that the metrics `row` cross at `step`, or None. Limits that are null are not checked."""
    drop = row.get("displacement/chosen")
    if cfg.max_chosen_drop is not None and drop is not None and drop < -cfg.max_chosen_drop:
        return (
            f"chosen log-prob fell by {-drop:.3f} nats per token at step {step}, more than "
            f"guard.max_chosen_drop={cfg.max_chosen_drop:g}: a lower trainer.learning_rate or fewer steps moves less; "
            "objective.nll or another objective.shape.alpha holds the chosen side up"
        )
    repetition = row.get("samples/repetition")
    if cfg.max_repetition is not None and repetition is not None and repetition > cfg.max_repetition:
        return (
            f"{repetition:.1%} of the sampled answers' 4-grams are repeats at step {step}, more than "
            f"guard.max_repetition={cfg.max_repetition:g}: a lower trainer.learning_rate or fewer steps"
        )
    norm = row.get("train/grad_norm")
    limit = cfg.max_gradient_norm
    if limit is not None and norm is not None and not norm <= limit:  # so that NaN crosses it
        return (
            f"gradient norm {norm:.3g} at step {step}, above guard.max_gradient_norm={limit:g}: "
            "lower objective.beta or trainer.learning_rate"
        )
    return None


@dataclass(frozen=True)
class Ending:
    """Why training ended before its last step."""

    state: str  # stopped or interrupted
    reason: str

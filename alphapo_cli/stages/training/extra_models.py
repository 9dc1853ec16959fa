"""Models beside the policy: a reference that is evaluated at every step, and a third model, `model.guide`.

TGDPO weights tokens by the log-ratio of guide and reference, MRPO uses the guide as a second reference. Both are
constant during training, so they are computed once for all pairs before the first step, and cached on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import Logs, TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.objective.data_requirements import lacking
from alphapo_cli.objective.objective import Objective
from alphapo_cli.objective.parts.score import GUIDE
from alphapo_cli.probe.scoring import measured_sides, score_tokens
from alphapo_cli.stages.training.compatibility import check_vocabulary
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData, rounding
from alphapo_cli.storage.hashing import digest
from alphapo_cli.training.moving_reference import MovingReference, frozen_copy

COLUMNS = tuple(GUIDE.format(side) for side in ("chosen", "rejected"))


def _columns(sides: int) -> tuple[str, ...]:
    """The columns with a guide's log-probs, for `sides` answers per pair."""
    return (*COLUMNS, *(GUIDE.format(side) for side in range(2, sides)))


def reads_guide(objective: Objective) -> bool:
    """Whether the objective uses `model.guide`."""
    return objective.needs_guide or any(name in COLUMNS for name in objective.columns)


def check_guide(cfg: TrainConfig, objective: Objective, pairs: TokenPairs, where: str) -> None:
    """Check that `model.guide` is set, or its columns are in `pairs`, where the objective needs it.

    Args:
        cfg: the run's configuration.
        objective: the objective.
        pairs: the tokenised pairs.
        where: the data set, for messages.

    Raises:
        UsageError: the objective needs a guide or its columns, and there are none.
    """
    if cfg.model.guide is not None:
        return
    absent = next((name for name in objective.columns if name in COLUMNS and name not in pairs.columns), None)
    if absent is not None:
        raise UsageError(
            f"{where}: {lacking(objective, absent)}; name the second reference in model.guide, or add the column to the data"
        )
    if objective.needs_guide:
        raise UsageError(
            f"objective '{objective.name}' weighs tokens by a guide model: name one in model.guide (a run directory, a "
            "model directory or a hub name; with the policy's tokenizer)"
        )


def expected_columns(cfg: TrainConfig, pairs: TokenPairs) -> Mapping[str, npt.NDArray[np.float64]]:
    """The columns that `pairs` will have, with zeros for the log-probs that the guide has yet to compute."""
    if cfg.model.guide is None:
        return pairs.columns
    return {**pairs.columns, **dict.fromkeys(_columns(pairs.num_sides), np.zeros(len(pairs)))}


def with_guide(
    cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder, policy: PolicyModel, objective: Objective
) -> tuple[ModelAndData, str | None]:
    """Add the guide's summed log-probs, and log-ratios per token where the objective needs them, to the pairs.

    Args:
        cfg: the run's configuration.
        start: model and data of the run.
        builder: loads models and caches their log-probs.
        policy: the model before its first step.
        objective: the objective.

    Returns:
        `start` with these pairs and the hash of the guide's weights; `start` and None where no guide is used.
    """
    if cfg.model.guide is None or not reads_guide(objective):
        return start, None
    guide = builder.frozen_policy(cfg, "model.guide", cfg.model.guide, policy)
    assert guide is not None
    weights = state_hash(guide.lm)
    reference = builder.reference_policy(cfg, policy) if objective.needs_guide else None
    scored = {}
    for name, pairs in {"train": start.data.train, "probe": start.data.probe}.items():
        count = measured_sides(objective, pairs)
        token_logps = functools.partial(_token_log_probs, cfg, start, builder, pairs, name, count)
        of_guide = token_logps(guide, weights)
        sums = {
            column: _sums(side, pairs, k)
            for k, (column, side) in enumerate(zip(_columns(count), of_guide, strict=True))
        }
        scored[name] = replace(pairs, columns={**pairs.columns, **sums})
        if reference is not None:
            of_reference = token_logps(reference, state_hash(reference.lm))
            ratio = tuple(a - b for a, b in zip(of_guide, of_reference, strict=True))
            scored[name] = replace(scored[name], guide=ratio)
    return replace(start, data=replace(start.data, train=scored["train"], probe=scored["probe"])), weights


def _token_log_probs(
    cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder, pairs: TokenPairs, name: str, sides: int,
    model: PolicyModel, weights: str,
) -> list[Logs]:  # fmt: skip
    """Log-probs in nats of the completion tokens under `model`, one flat array per answer, cached on disk."""
    key = digest(["tokens", name, weights, start.data.key, *rounding(cfg, model), cfg.probe.batch_size, sides])
    ends = np.cumsum([len(side.ids) for side in pairs.answers[:sides]])

    def make(tick: Callable[[int], None]) -> npt.NDArray[np.float32]:
        logps = score_tokens(
            model, pairs, batch_size=cfg.probe.batch_size, pad_id=start.pad_id,
            processes=builder.processes, sides=sides, tick=tick,
        )  # fmt: skip
        return np.concatenate(logps)

    flat = builder.cached_array(key, f"token log-probs ({name})", (int(ends[-1]),), np.float32, len(pairs), make)
    return np.split(flat, ends[:-1])


def _sums(logps: Logs, pairs: TokenPairs, side: int) -> npt.NDArray[np.float64]:
    """[n] summed log-probs in nats of the answers of a side, from those of its tokens."""
    total = np.concatenate([np.zeros(1), np.cumsum(logps, dtype=np.float64)])
    offsets = pairs.answers[side].offsets
    sums: npt.NDArray[np.float64] = total[offsets[1:]] - total[offsets[:-1]]
    return sums


def running_reference(
    cfg: TrainConfig, builder: InputsBuilder, policy: PolicyModel, objective: Objective, steps: int,
    log: Callable[[str], None],
) -> tuple[MovingReference | None, PolicyModel | None]:  # fmt: skip
    """Make the reference models that are evaluated at every step.

    Args:
        cfg: the run's configuration.
        builder: loads models.
        policy: the model before its first step.
        objective: the objective.
        steps: optimizer steps of the run.
        log: prints a note to the user.

    Returns:
        (the reference that is updated towards the policy, the model from which the KL divergence is measured); None for
        what the objective does not need.

    Raises:
        UsageError: `model.reference` has another architecture than the policy, or another vocabulary.
    """
    every = objective.reference_every
    if every is None and not objective.needs_kl:
        return None, None
    start = builder.reference_policy(cfg, policy)
    moving = None
    if every is not None:
        if every > steps:
            log(
                f"note: objective.reference_every={every}: the reference never moves in a run of {steps} steps; take fewer"
            )
        moving = MovingReference(start, every, objective.reference_mix)
        moving.check(policy)
    if not objective.needs_kl:
        return moving, None
    kl_from = frozen_copy(start) if moving is None else moving.policy
    check_vocabulary(policy, kl_from)
    return moving, kl_from

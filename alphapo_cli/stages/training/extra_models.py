"""Models beside the policy: a reference that is run at every step, and a third model, `model.guide`.

What objectives read of a guide is made before the first step: TGDPO weighs tokens by its log-ratio to the reference,
MRPO takes it for a second reference. Both are constants of training, so they are made once, of all pairs, and kept in
the cache.
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
from alphapo_cli.modeling.policy import PolicyModel, check_vocabulary
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.objective.data_requirements import lacking
from alphapo_cli.objective.objective import Objective
from alphapo_cli.objective.parts.score import GUIDE
from alphapo_cli.probe.scoring import measured_sides, score_tokens
from alphapo_cli.runs.directory import digest
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData, rounding
from alphapo_cli.training.moving_reference import MovingReference, frozen_copy

COLUMNS = tuple(GUIDE.format(side) for side in ("chosen", "rejected"))


def _columns(sides: int) -> tuple[str, ...]:
    """The columns of so many answers."""
    return (*COLUMNS, *(GUIDE.format(side) for side in range(2, sides)))


def reads_guide(objective: Objective) -> bool:
    """Whether `model.guide` means anything to the objective."""
    return objective.needs_guide or any(name in COLUMNS for name in objective.columns)


def check_guide(cfg: TrainConfig, objective: Objective, pairs: TokenPairs, where: str) -> None:
    """Raises UsageError: the objective needs `model.guide`, which is not set (nor are its columns in `pairs`)."""
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


def to_come(cfg: TrainConfig, pairs: TokenPairs) -> Mapping[str, npt.NDArray[np.float64]]:
    """The columns of `pairs` as they will be once the guide has read them: with its log-probs, of which none is known."""
    if cfg.model.guide is None:
        return pairs.columns
    return {**pairs.columns, **dict.fromkeys(_columns(pairs.num_sides), np.zeros(len(pairs)))}


def guided(
    cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder, policy: PolicyModel, objective: Objective
) -> tuple[ModelAndData, str | None]:
    """The start with what the guide says of their pairs, and the hash of its weights; as they are where none is read."""
    if cfg.model.guide is None or not reads_guide(objective):
        return start, None
    guide = builder.frozen_policy(cfg, "model.guide", cfg.model.guide, policy)
    assert guide is not None
    weights = state_hash(guide.lm)
    reference = builder.reference_policy(cfg, policy) if objective.needs_guide else None
    found = {}
    for name, pairs in {"train": start.data.train, "probe": start.data.probe}.items():
        count = measured_sides(objective, pairs)
        logps = functools.partial(_token_log_probs, cfg, start, builder, pairs, name, count)
        theirs = logps(guide, weights)
        sums = {
            column: _sums(side, pairs, k) for k, (column, side) in enumerate(zip(_columns(count), theirs, strict=True))
        }
        found[name] = replace(pairs, columns={**pairs.columns, **sums})
        if reference is not None:
            ours = logps(reference, state_hash(reference.lm))
            ratio = tuple(a - b for a, b in zip(theirs, ours, strict=True))
            found[name] = replace(found[name], guide=ratio)
    return replace(start, data=replace(start.data, train=found["train"], probe=found["probe"])), weights


def _token_log_probs(
    cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder, pairs: TokenPairs, name: str, sides: int,
    model: PolicyModel, weights: str,
) -> list[Logs]:  # fmt: skip
    """Every completion token's log-prob under `model`, side after side, from the cache where it is there."""
    key = digest(["tokens", name, weights, start.data.key, *rounding(cfg, model), cfg.probe.batch_size, sides])
    ends = np.cumsum([len(side.ids) for side in pairs.answers[:sides]])

    def make(tick: Callable[[int], None]) -> npt.NDArray[np.float32]:
        logps = score_tokens(
            model, pairs, batch_size=cfg.probe.batch_size, pad_id=start.tokenizer.pad_token_id,
            processes=builder.processes, sides=sides, tick=tick,
        )  # fmt: skip
        return np.concatenate(logps)

    flat = builder.cached_array(key, f"token log-probs ({name})", (int(ends[-1]),), np.float32, len(pairs), make)
    return np.split(flat, ends[:-1])


def _sums(logps: Logs, pairs: TokenPairs, side: int) -> npt.NDArray[np.float64]:
    """[n] summed log-probs of a side's answers, whose tokens' are `logps`."""
    total = np.concatenate([np.zeros(1), np.cumsum(logps, dtype=np.float64)])
    offsets = pairs.answers[side].offsets
    sums: npt.NDArray[np.float64] = total[offsets[1:]] - total[offsets[:-1]]
    return sums


def running_reference(
    cfg: TrainConfig, builder: InputsBuilder, policy: PolicyModel, objective: Objective, steps: int,
    log: Callable[[str], None],
) -> tuple[MovingReference | None, PolicyModel | None]:  # fmt: skip
    """The reference that follows the policy, and the model that the KL is from; None for what the objective has not.

    Args:
        steps: optimizer steps of the run.
        log: takes a note to the user.

    Raises:
        UsageError: `model.reference` cannot be mixed with the policy, or compared with it token by token.
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

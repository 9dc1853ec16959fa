"""`data.select` of a run: the numbers that its conditions ask for, some of which need the start model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from accelerate import PartialState

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.select import check
from alphapo_cli.data.selected import SETTING, conditions_of, selected
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.policy import policy_of
from alphapo_cli.modeling.sharding import sharding_plan
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.idealised import MARGIN, preference_column
from alphapo_cli.probe.pair_scores import idealised_margin, model_scores, token_scores
from alphapo_cli.probe.score_names import NAMES, OF_MODEL, OF_TOKENS
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData, rounding
from alphapo_cli.stages.training.sharded import check_model, loaded
from alphapo_cli.storage.hashing import digest


def with_selection(cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder, objective: Objective) -> ModelAndData:
    """Leave out the training pairs that `data.select` does not keep.

    Args:
        cfg: the run's configuration.
        start: model and data of the run.
        builder: caches scores on disk, and shares the work among its processes.
        objective: defines the probabilities of preferences, if it reads any.

    Returns:
        `start` with fewer training pairs; `start` itself where nothing is selected.

    Raises:
        UsageError: a score or column is not known, a condition makes no sense, or no pair is left.
    """
    conditions = conditions_of(cfg.data.select)
    if not conditions:
        return start
    pairs = start.data.train
    label = preference_column(objective, pairs.columns)
    known = [*NAMES, *pairs.columns, *([MARGIN] if label is not None else [])]
    check(conditions, known, SETTING)
    names = {one.by for one in conditions}
    numbers: dict[str, npt.NDArray[np.float64]] = dict(pairs.columns)
    if names & {*OF_TOKENS}:
        numbers |= token_scores(pairs)
    if names & {*OF_MODEL, MARGIN}:
        numbers |= start_scores(cfg, start, builder)
    if MARGIN in names and label is not None:
        numbers[MARGIN] = idealised_margin(numbers["reference_gap"], pairs.columns[label], objective.beta)
    data = selected(start.data, conditions, numbers, cfg.seed)
    return ModelAndData(start.tokenizer, data, start.policy, start.start, start.weights, start.pad_id)


def start_scores(
    cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder
) -> Mapping[str, npt.NDArray[np.float64]]:
    """Scores of the training pairs under the start model, cached on disk.

    Args:
        cfg: the run's configuration.
        start: model and data of the run.
        builder: caches the scores, and shares the work among its processes.

    Returns:
        Name (`score_names.OF_MODEL`) -> [P], NaN for a row with one answer.

    Raises:
        UsageError: the weights cannot be read.
    """
    lm = loaded(builder.processes, start.policy)
    if cfg.model.path is None and cfg.model.source == "from_scratch":
        lm = copy.deepcopy(lm)  # there is one of it, which is to be trained as it is
    device = PartialState().device
    if builder.processes.together:
        check_model(lm)
        plan = sharding_plan(cfg.sharding, device, cfg.trainer.bf16)
        policy = policy_of(lm, cfg, device=device).shard(plan)
    else:
        policy = policy_of(lm.to(device), cfg)
    pairs: TokenPairs = start.data.train
    key = digest(["scores", state_hash(policy.lm), start.data.key, *rounding(cfg, policy), cfg.probe.batch_size])

    def make(tick: Callable[[int], None]) -> npt.NDArray[np.float64]:
        found = model_scores(
            policy, pairs, batch_size=cfg.probe.batch_size, pad_id=start.pad_id, processes=builder.processes, tick=tick
        )
        return np.stack([found[name] for name in OF_MODEL])

    table = builder.cached_array(key, "scores of the pairs", (len(OF_MODEL), len(pairs)), np.float64, len(pairs), make)
    return dict(zip(OF_MODEL, table, strict=True))

"""Every objective that conf/objective/ holds, rows of each kind that it trains on, and steps of training on them.

Rows are made of pairs, so that whatever shapes the pairs have, lists, unpaired rows and trajectories have too. All that
a step reads beside them (reference, guide, KL, statistics) is made as training makes it, and in the step's own layout.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alphapo_cli.config.schema import TrainConfig, TrainerConfig
from alphapo_cli.data.token_pairs import Ragged, TokenPair, TokenPairs
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.build import build
from alphapo_cli.objective.data_requirements import check_columns, check_sides
from alphapo_cli.objective.objective import Objective, PairLoss
from alphapo_cli.objective.parts.score import GUIDE
from alphapo_cli.probe.scoring import measured_sides, score_pairs, score_tokens
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.stages.training.extra_models import reads_guide, running_reference
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.step_data import MetricSums
from alphapo_cli.training.trainer import PreferenceTrainer
from tests import tiny
from tests.pair_shapes import LIMIT

NAMES = sorted(file.stem for file in Path(__file__).parents[1].glob("conf/objective/*.yaml"))
ANSWERS = {"pairs": 2, "unpaired": 2, "turns": 2, "gold": 3, "lists": 4}  # kind of rows -> answers of a row


@functools.cache
def objective_of(name: str) -> Objective:
    """As `tiny.objective` makes it (a test compares), without twenty seconds of Hydra wherever tests are collected."""
    return build(tiny.catalogue()[name].cfg)


def kinds(objective: Objective) -> list[str]:
    """The kinds of rows that it reads in different ways."""
    found = ["pairs" if objective.sides(2) <= 2 else "gold"]
    if objective.reads_all is not None:
        found.append("lists")
    if objective.pairing is None:
        found.append("unpaired")
    if objective.weighs_tokens:
        found.append("turns")
    return found


CASES = [(name, kind) for name in NAMES for kind in kinds(objective_of(name))]


def _answers(pairs: Sequence[TokenPair], i: int, kind: str) -> list[list[int]]:
    """A row's answers, made of the i-th pair and those that follow it."""
    found = [side.tolist() for side in pairs[i].answers]
    if kind == "unpaired":
        found[i % 3 > 0] = []
    for k in range(2, ANSWERS[kind]):  # they begin as one of the pair's own do, and none leaves the model's positions
        other = pairs[(i + k) % len(pairs)].answers[k % 2].tolist()
        room = max(1, LIMIT - len(pairs[i].prompt))
        found.append([*found[k % 2][: i % 3], *other][:room])
    return found


def _turns(length: int) -> list[int]:
    """Three tokens of the assistant, two that are only read, and so on."""
    return [-1 if j % 5 > 2 else j // 5 for j in range(length)]


def rows_of(kind: str, pairs: Sequence[TokenPair]) -> TokenPairs:
    """The pairs as rows of that kind."""
    n, count = len(pairs), ANSWERS[kind]
    answers = [_answers(pairs, i, kind) for i in range(n)]
    sides = [Ragged.from_lists([row[k] for row in answers]) for k in range(count)]
    turns = [Ragged.from_lists([_turns(len(row[k])) for row in answers]) for k in range(count)]
    return TokenPairs(
        prompt=Ragged.from_lists([p.prompt.tolist() for p in pairs]), chosen=sides[0], rejected=sides[1],
        prompt_keys=tuple(str(i) for i in range(n)), index=np.arange(n), others=tuple(sides[2:]),
        turns=tuple(turns) if kind == "turns" else (),
    )  # fmt: skip


def data_of(objective: Objective, kind: str, pairs: Sequence[TokenPair]) -> TokenPairs:
    """The pairs as rows of that kind, with the columns that the objective reads."""
    n, count = len(pairs), ANSWERS[kind]
    rng = np.random.default_rng(n)
    columns = {name: rng.uniform(0.05, 0.95, n) for name in objective.columns_of(objective.sides(count))}
    best, *others, worst = np.sort(rng.uniform(2.9, 3.8, (count, n)), axis=0)[::-1]
    scores = zip(("score_chosen", "score_rejected", "score_2", "score_3"), (best, worst, *others), strict=False)
    columns |= {name: values for name, values in scores if name in columns}
    found = replace(rows_of(kind, pairs), columns=columns)
    if objective.needs_mismatched:
        found = found.with_mismatched()
    check_sides(objective, found.num_sides, found.unpaired, kind, columns)
    check_columns(objective, columns, range(n), kind, objective.sides(found.num_sides))
    return found


def guided(lm: Any, objective: Objective, data: TokenPairs) -> TokenPairs:
    """The rows with what a guide model says of them: one that differs from `lm` and from its reference."""
    if not reads_guide(objective):
        return data
    sides = measured_sides(objective, data)
    theirs, ours = (
        score_tokens(model, data, batch_size=3, pad_id=tiny.PAD, processes=Processes(), sides=sides)
        for model in (PolicyModel(tiny.perturbed(lm, seed=2)), PolicyModel(tiny.perturbed(lm, seed=1)))
    )
    names = (GUIDE.format(side) for side in ("chosen", "rejected", *range(2, sides)))
    sums = (
        np.array([logps.sum(dtype=np.float64) for logps in np.split(side, answers.offsets[1:-1])])
        for side, answers in zip(theirs, data.answers, strict=False)
    )
    columns = {**data.columns, **dict(zip(names, sums, strict=True))}
    return replace(data, columns=columns, guide=tuple(a - b for a, b in zip(theirs, ours, strict=True)))


class _Rows(MetricSums):
    """Also keeps the loss of each row of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, Tensor] = {}  # by the row's place in the data

    def add(self, result: PairLoss, batch: PairBatch, lengths: Tensor, sums: Tensor) -> None:
        super().add(result, batch, lengths, sums)
        self.losses |= dict(zip(batch.index.tolist(), result.loss.detach(), strict=True))


def trainer_of(
    lm: Any,
    layout: str,
    objective: Objective,
    data: TokenPairs,
    folder: Path,
    *,
    at_start: bool = False,
    **settings: Any,
) -> tuple[PreferenceTrainer, tiny.Logged]:
    """The trainer of `lm`, and the rows that it will log; beside a reference that differs from it, or that it still is."""
    policy = PolicyModel(lm, layout=layout)
    other = copy.deepcopy(lm) if at_start else tiny.perturbed(lm, seed=1)
    before = PolicyModel(other, layout=layout).requires_grad_(False)
    reference = None
    if objective.needs_reference:
        reference = score_pairs(before, data, batch_size=3, pad_id=tiny.PAD, processes=Processes(), objective=objective)
    cfg = TrainerConfig(**{"max_grad_norm": 0.0, "use_cpu": True, "logging_steps": 1, **settings})
    builder: Any = SimpleNamespace(reference_policy=lambda *_: before)
    steps = DataOrder.of(cfg, len(data), 1, seed=3).total_steps
    moving, kl_from = running_reference(TrainConfig(), builder, policy, objective, steps, lambda note: None)
    logged = tiny.Logged()
    trainer = tiny.trainer(
        policy, objective, data, cfg, folder, hooks=logged, reference=reference, moving=moving, kl_from=kl_from, seed=3
    )
    return trainer, logged


@dataclass(frozen=True)
class Step:
    """What one optimizer step of all rows computed."""

    losses: Tensor  # [n]
    gradients: dict[str, Tensor]
    logged: dict[str, float]
    memory: dict[str, Tensor]  # what the objective will remember of it


def step(lm: Any, layout: str, objective: Objective, data: TokenPairs, folder: Path, *, at_start: bool = False) -> Step:
    """The first step of training a copy of `lm`, its rows in two micro-batches, in float64 for a float64 model."""
    lm, n = copy.deepcopy(lm), len(data)
    with tiny.Wide():
        trainer, _ = trainer_of(
            lm, layout, objective, data, folder, at_start=at_start, per_device_train_batch_size=-(-n // 2),
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.sums = rows = _Rows()
        trainer.training_step(trainer.model, trainer.steps[0])
    assert sorted(rows.losses) == list(range(n))
    return Step(
        losses=torch.stack([rows.losses[i] for i in range(n)]),
        gradients={name: p.grad for name, p in lm.named_parameters() if p.grad is not None},
        logged=rows.means(lambda sums: sums),
        memory={f"{kind} {name}": x for kind, found in trainer.part_states.items() for name, x in found.items()},
    )

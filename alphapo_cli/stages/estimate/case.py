"""Model and data of a training that is estimated: prepared as training prepares them, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from alphapo_cli.config.schema import SelectConfig, TrainConfig
from alphapo_cli.data.selected import SETTING, conditions_of
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.locations import locate
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.idealised import MARGIN
from alphapo_cli.probe.score_names import OF_MODEL
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.stages.estimate.inputs import DataBuilder, missing
from alphapo_cli.stages.train import start_of
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.stages.training.extra_models import reads_guide
from alphapo_cli.stages.training.inputs import ModelAndData
from alphapo_cli.stages.training.low_precision import check_low_precision
from alphapo_cli.stages.training.sharded import check_sharding
from alphapo_cli.training.data_order import DataOrder

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A training before it starts.

    Attributes:
        cfg: its configuration.
        objective: its objective.
        start: tokenizer and data; its weights are never loaded.
        world: processes that train.
        divided: whether they divide the steps of one process among them, as those of a sweep's cell do.
        base: directory of the embedded world's base, where training starts from that.
        notes: what is not as in training.
        gpu: whether a GPU is planned for that need not be here; without one it runs where it would on this machine.
        known: what `once` has made, shared by copies of the case.
    """

    cfg: TrainConfig
    objective: Objective
    start: ModelAndData
    world: int
    base: Path | None
    notes: tuple[str, ...] = ()
    divided: bool = False
    gpu: bool = False
    known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made once for this case and its copies of other settings, all of which `key` names."""
        if key not in self.known:
            self.known[key] = make()
        found: T = self.known[key]
        return found

    @property
    def pairs(self) -> TokenPairs:
        """The training pairs."""
        return self.start.data.train

    @cached_property
    def sides(self) -> int:
        """Answers of a pair that the objective reads."""
        return self.objective.sides(self.pairs.num_sides)

    @cached_property
    def reads_guide(self) -> bool:
        """Whether the objective reads `model.guide`."""
        return reads_guide(self.objective)

    @property
    def here(self) -> str:
        """Where the model would run on this machine: "cpu" or "cuda"."""
        return "cpu" if self.cfg.trainer.use_cpu or not torch.cuda.is_available() else "cuda"

    @property
    def device(self) -> str:
        """Where it runs on the machine that is planned for."""
        return "cuda" if self.gpu and not self.cfg.trainer.use_cpu else self.here

    def order(self, cfg: TrainConfig | None = None) -> DataOrder:
        """The order of pairs, without their sizes."""
        cfg = cfg or self.cfg
        shared = Processes(0, self.world, divided=self.divided)
        order = DataOrder.of(cfg.trainer, len(self.pairs), shared.steps_of, cfg.seed, self.pairs.columns.get("stage"))
        return order.divided(self.world) if self.divided else order


def prepare_case(
    cfg: TrainConfig, world: int, builder: DataBuilder | None = None, *, divided: bool = False, gpu: bool = False
) -> Case:
    """Prepare data and objective by the code that training prepares them with.

    Args:
        cfg: the resolved configuration.
        world: processes that would train.
        builder: shared by the cells of a sweep.
        divided: whether they divide the steps of one among them.
        gpu: whether a GPU is planned for that need not be here.

    Returns:
        The case.

    Raises:
        UsageError: as training refuses model, data or settings.
    """
    check_sharding(cfg, Processes(0, world))
    check_low_precision(cfg, here=False)
    builder = builder or DataBuilder()
    notes = []
    used = cfg
    by = sorted({one.by for one in conditions_of(cfg.data.select)} & {*OF_MODEL, MARGIN})
    if by:
        used = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, select=SelectConfig()))
        notes.append(
            f"{SETTING}.by={by[0]} needs the model's log-probs: all pairs are counted, as if none were left out"
        )
    objective, start = start_of(used, builder)
    if cfg.model.path is not None:
        notes += missing(locate(cfg.model.path, cfg.model.revision, weightless=True), cfg.model)
    embedded = cfg.model.path is None and cfg.model.source == "glassbox"
    base = glassbox_base.ensure(builder.cache) if embedded else None
    return Case(cfg, objective, start, world, base, tuple(notes), divided, gpu)

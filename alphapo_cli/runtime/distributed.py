"""Distributed training: the rank of this process, and gathering and broadcasting Python objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Rank of this process, and the number of processes (world size)."""

    rank: int = 0
    world: int = 1

    def gather(self, items: list[Any]) -> list[Any]:
        """All-gather: the lists of all processes, joined in order of rank."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def first(self, make: Callable[[], T]) -> T:
        """Call `make` in rank 0 and broadcast its result; an exception there is raised in every process."""
        if self.world == 1:
            return make()
        outcome: list[Any] = [None]
        if self.rank == 0:
            try:
                outcome = [(make(), None)]
            except Exception as error:
                outcome = [(None, error)]
        torch.distributed.broadcast_object_list(outcome, src=0)
        value, problem = outcome[0]
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]


def start_processes(*, use_cpu: bool) -> Processes:
    """Join the process group of torchrun, if any; on GPUs where there are some, unless `use_cpu`."""
    state = PartialState(cpu=use_cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def leave_processes() -> None:
    """Destroy the process group, after the last collective operation."""
    PartialState().destroy_process_group()

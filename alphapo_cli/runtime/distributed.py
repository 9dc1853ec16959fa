"""Several processes of one run: their ranks, and how what one of them has reaches the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """How many processes work together, and which one this is."""

    rank: int = 0
    world: int = 1

    def gather(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes, joined in order of rank."""
        if self.world == 1:
            return mine
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; an error there is an error everywhere."""
        if self.world == 1:
            return make()
        made: list[Any] = [None]
        if self.rank == 0:
            try:
                made = [(make(), None)]
            except Exception as error:
                made = [(None, error)]
        torch.distributed.broadcast_object_list(made, src=0)
        value, problem = made[0]
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]


def start_processes(*, use_cpu: bool) -> Processes:
    """Join the other processes that torchrun started, if any; on GPUs where there are some, unless `use_cpu`."""
    state = PartialState(cpu=use_cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def leave_processes() -> None:
    """Take leave of the other processes, once nothing more will be asked of them."""
    PartialState().destroy_process_group()

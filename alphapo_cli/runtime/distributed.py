"""Distributed training: the rank of this process, and gathering and broadcasting Python objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from alphapo_cli.errors import AlphapoError, Interrupted, in_words

T = TypeVar("T")
_FAILURE = "alphapo/failure"  # in the store of the process group: who failed first, and why
_LOST = re.compile(r"connection|recv|peer|NCCL", re.IGNORECASE)  # what gloo and NCCL say when a process is gone


class PeerLost(AlphapoError):
    """Another process of the run is gone, so that no collective operation can end."""


class Agreed(AlphapoError):
    """What went wrong in one process, raised in all of them at the same place: they can go on together."""


def lost(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone, by what gloo and NCCL say then."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


@dataclass(frozen=True)
class Processes:
    """Rank of this process, and the number of processes (world size)."""

    rank: int = 0
    world: int = 1
    # Whether they run a model together, each with a part of its weights, so that every forward pass needs all of them.
    together: bool = False
    # Whether they divide the optimizer steps of one process among them, so that the results do not depend on their number.
    # Otherwise each adds its own micro-batches to a step, as processes of torchrun do.
    divided: bool = False

    @property
    def steps_of(self) -> int:
        """The number of processes whose micro-batches make up an optimizer step."""
        return 1 if self.divided else self.world

    def gather(self, items: list[Any]) -> list[Any]:
        """All-gather: the lists of all processes, joined in order of rank."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def same(self, reason: str | None) -> str | None:
        """The reason of the first process that has one, in every process; None where none has."""
        return next((r for r in self.gather([reason]) if r is not None), None)

    def agree(self, fault: Exception | None, *own: type[Exception]) -> None:
        """Raise in every process what went wrong in one of them.

        Args:
            fault: what went wrong in this process.
            own: kinds of errors that are raised as they are where they occurred.

        Raises:
            Agreed: something did, in this process or another one.
        """
        reason = self.same(None if fault is None else in_words(fault))
        if fault is not None and (self.world == 1 or isinstance(fault, own)):
            raise fault
        if reason is not None:
            raise Agreed(reason) from fault

    def cause(self, error: BaseException) -> BaseException:
        """Tell the other processes why this one ends, unless another one has ended before and so made this one fail.

        Returns:
            `error`, or that of the process that failed first, in its words.
        """
        if self.world == 1 or not isinstance(error, Exception) or isinstance(error, Interrupted):
            return error
        own = {"rank": self.rank, "reason": in_words(error)}
        if lost(error):
            own["reason"] = "another process of the run is gone; the same line continues from the last checkpoint"
            error = PeerLost(own["reason"])
        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            first = json.loads(store.compare_set(_FAILURE, "", json.dumps(own)))
        except (RuntimeError, ValueError):  # it went with the process that kept it
            return error
        if first["rank"] == self.rank or first["reason"] == own["reason"]:
            return error
        return AlphapoError(f"process {first['rank']}: {first['reason']}")

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


def start_processes(*, use_cpu: bool, together: bool = False, divided: bool = False) -> Processes:
    """Join the process group of torchrun, if any; on GPUs where there are some, unless `use_cpu`.

    Args:
        use_cpu: whether GPUs are left alone.
        together: whether the processes run a model together, see `Processes`.
        divided: whether they divide the steps of one process among them, see `Processes`.

    Returns:
        This process's place among them.
    """
    state = PartialState(cpu=use_cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, together, divided)


def leave_processes() -> None:
    """Destroy the process group, after the last collective operation."""
    PartialState().destroy_process_group()

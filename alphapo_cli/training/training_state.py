"""What a policy in training is made of, and how processes that share it write and read it together.

A policy that is not sharded is in a checkpoint's own file. The tensors of a sharded one are written by
`torch.distributed.checkpoint`: each process writes its shards, and any number of processes reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from alphapo_cli.errors import AlphapoError, in_words
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.sharding import at_rest
from alphapo_cli.runs.checkpoints import TrainingCheckpoint
from alphapo_cli.runtime.distributed import Agreed
from alphapo_cli.training.moving_reference import MovingReference

Shards = dict[str, Tensor]  # name of a tensor that processes share -> the tensor; DTensors where it is sharded
_SHARED = "shared tensor"  # stands for one in an optimizer's state


def trained_tensors(policy: PolicyModel) -> list[tuple[str, Tensor]]:
    """Parameters that train, and buffers; frozen weights are not stored, they are loaded from their source."""
    at_rest(policy)
    # Not all of the state is one or the other: a quantised layer adds its scales.
    trained = {name for name, p in policy.named_parameters(remove_duplicate=False) if p.requires_grad}
    trained |= {name for name, _ in policy.named_buffers(remove_duplicate=False)}
    seen: set[int] = set()
    tensors = []
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if name in trained and id(tensor) not in seen:  # tied weights once
            seen.add(id(tensor))
            tensors.append((name, tensor))
    return tensors


@dataclass(frozen=True)
class TrainingState:
    """What a policy in training is made of, as a checkpoint holds it."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    reference: Mapping[str, Tensor]  # of a reference that follows the policy
    shards: Shards  # the tensors of a sharded policy, which are in none of the others

    @property
    def in_file(self) -> dict[str, Any]:
        """The fields of a checkpoint."""
        return {"weights": self.weights, "optimizer": self.optimizer, "reference": self.reference}


def taken(policy: PolicyModel, optimizer: Any | None = None, moving: MovingReference | None = None) -> TrainingState:
    """Take what training goes on from: of a whole policy copies on the CPU, of a sharded one the tensors themselves."""
    if policy.sharded is None:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in trained_tensors(policy)}
        state = {} if optimizer is None else optimizer.state_dict()
        return TrainingState(weights, state, {} if moving is None else moving.state(), {})
    moments, rest = ({}, {}) if optimizer is None else _moments(optimizer)
    return TrainingState({}, rest, {}, {**_weights(policy, moving), **moments})


def put_back(checkpoint: TrainingCheckpoint, policy: PolicyModel, moving: MovingReference | None = None) -> None:
    """Load the weights of a checkpoint, and those of a reference that follows the policy. Collective.

    Raises:
        AlphapoError: the shards cannot be read.
    """
    if checkpoint.shards is not None:
        read(_weights(policy, moving), Path(checkpoint.shards))
        return
    with torch.no_grad():
        for name, tensor in trained_tensors(policy):
            tensor.copy_(checkpoint.weights[name])
    if moving is not None:
        moving.load(checkpoint.reference)


def optimizer_state(checkpoint: TrainingCheckpoint, optimizer: Any) -> Mapping[str, Any]:
    """Read the state of the optimizer from a checkpoint, with the shards of this process. Collective.

    Returns:
        What the optimizer loads.

    Raises:
        AlphapoError: the shards cannot be read.
    """
    if checkpoint.shards is None:
        return checkpoint.optimizer
    state, found = checkpoint.optimizer, Shards()
    whole: dict[int, dict[str, Any]] = {}
    for n, p in _numbered(optimizer, state):
        for name, value in state["state"].get(n, {}).items():
            if isinstance(value, str) and value == _SHARED:
                value = found[f"moments/{n}/{name}"] = torch.zeros_like(p.detach())
            whole.setdefault(n, {})[name] = value
    read(found, Path(checkpoint.shards))
    return {**state, "state": whole}


def _weights(policy: PolicyModel, moving: MovingReference | None) -> Shards:
    found = {f"weights/{name}": tensor.detach() for name, tensor in trained_tensors(policy)}
    if moving is not None:
        found |= {f"reference/{name}": tensor.detach() for name, tensor in moving.weights()}
    return found


def _moments(optimizer: Any) -> tuple[Shards, dict[str, Any]]:
    """The tensors of an optimizer's state that have the shape of a parameter, and the state without them."""
    state: dict[str, Any] = optimizer.state_dict()
    found: Shards = {}
    rest: dict[int, dict[str, Any]] = {}
    for n, p in _numbered(optimizer, state):
        for name, value in state["state"].get(n, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape == p.shape:
                found[f"moments/{n}/{name}"], value = value, _SHARED
            rest.setdefault(n, {})[name] = value
    return found, {**state, "state": rest}


def _numbered(optimizer: Any, state: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """The optimizer's parameters by their numbers in its state."""
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    return zip(numbers, ours, strict=True)


class _Writer(FileSystemWriter):
    """Says why a file could not be written: torch sends an error to the other processes without what led to it."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise AlphapoError(in_words(error)) from error

    def finish(self, metadata: Any, results: Any) -> None:
        try:
            super().finish(metadata, results)
        except Exception as error:
            raise AlphapoError(in_words(error)) from error


def write(shards: Shards, folder: Path) -> None:
    """Write what this process holds of the tensors. Collective.

    Raises:
        Agreed: a process could not write, in all of them.
    """
    try:
        save(dict(shards), storage_writer=_Writer(folder))
    except CheckpointException as error:  # no Exception, but a BaseException
        raise Agreed(f"{folder}: the shards cannot be written ({_first_failure(error)})") from error


def read(shards: Shards, folder: Path) -> None:
    """Read into the tensors, whatever number of processes wrote them. Collective.

    Raises:
        Agreed: they are not there, or damaged, in all of them.
    """
    try:
        load(dict(shards), checkpoint_id=folder)
    except CheckpointException as error:
        raise Agreed(f"{folder}: the shards cannot be read ({_first_failure(error)})") from error


def _first_failure(error: CheckpointException) -> str:
    """Where the processes' reading or writing failed first, and why."""
    rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
    return f"process {rank}: {in_words(cause)}"


def dealt(processes: Any, rank: int, world: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a process goes on with, of what `processes` of a checkpoint each had, in their number or another one.

    Args:
        processes: per rank of the checkpoint "rng" and "sums".
        rank: this process.
        world: number of processes now.

    Returns:
        (random generators, sums of metrics); each sum is with one process, the others go on from zero.
    """
    sums = {name: torch.zeros_like(value) for name, value in processes[0]["sums"].items()}
    for theirs in processes[rank::world]:
        sums |= {name: sums[name] + value if name in sums else value for name, value in theirs["sums"].items()}
    return processes[rank % len(processes)]["rng"], sums

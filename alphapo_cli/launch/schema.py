"""The typed schema of how a sweep's cells are run. No part of what they compute, so no part of any identity."""

from __future__ import annotations

from dataclasses import dataclass, field

from alphapo_cli.config.schema import _choice, _number


@dataclass
class LauncherConfig:
    """Where cells run. Keys that a launcher has no use for must be left alone."""

    name: str = _choice("local", "local", "slurm", "ray")
    # local: worker processes; null: one per GPU, without GPUs as many as the cells' trainer.threads leave room for;
    # 0: in this process, one cell after another.
    workers: int | None = _number(None, ge=0)
    crashes: int = _number(2, ge=1)  # a cell whose worker died this often has failed
    # slurm (submitit): one array task a cell.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = _number(240, ge=1)  # minutes a task; at the end it is requeued and goes on from its checkpoint
    cpus: int = _number(1, ge=1)  # a task
    gpus: int = _number(0, ge=0)  # a task
    memory_gb: float | None = _number(None, gt=0)  # a task
    requeues: int = _number(20, ge=0)
    setup: list[str] = field(default_factory=list)  # shell lines before each task
    # ray
    address: str | None = None  # of a running cluster ("auto": the one of this machine); null: a local one


@dataclass
class SweepConfig:
    """The resolved `launcher.*` of `alphapo sweep`."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)

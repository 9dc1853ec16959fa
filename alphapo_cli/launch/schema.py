"""The typed schema of `launcher.*`, how a sweep's cells are run. It does not change results, so no hash includes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from alphapo_cli.config.schema import _choice, _number


@dataclass
class LauncherConfig:
    """Settings of the launcher; a setting that the chosen launcher does not read must stay at its default."""

    name: str = _choice("local", "local", "slurm", "ray")
    # local: worker processes; null: one per GPU, without GPUs the CPU cores divided by the cells' trainer.threads;
    # 0: in this process, one cell after another. slurm, ray: cells that run at a time at most; null: no limit.
    # With nproc_per_node one per group of so many GPUs, or so many cores.
    workers: int | None = _number(None, ge=0)
    crashes: int = _number(2, ge=1)  # a cell whose worker died this often has failed
    # Processes of a cell on each node, as torchrun has them: they divide the cell's optimizer steps among them.
    nproc_per_node: int = _number(1, ge=1)
    nodes: int = _number(1, ge=1)  # slurm, ray: nodes of a cell, one task on each
    # slurm (submitit): one array task a cell.
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = _number(
        240, ge=1
    )  # minutes per task; a task that runs out of time is requeued and resumes from its checkpoint
    cpus: int = _number(1, ge=1)  # per task; at least one for each of its processes
    gpus: int = _number(0, ge=0)  # per task
    memory_gb: float | None = _number(None, gt=0)  # per task
    requeues: int = _number(20, ge=0)  # of a task that runs out of time, at most
    setup: list[str] = field(default_factory=list)  # shell lines before each task
    # ray
    address: str | None = None  # of a running cluster ("auto": that of this machine); null: start a local one


@dataclass
class SweepConfig:
    """The resolved `launcher.*` of `alphapo sweep`."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)

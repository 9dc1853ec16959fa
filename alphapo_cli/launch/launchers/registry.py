"""The launchers by name, and the settings that each of them reads."""

from __future__ import annotations

from collections.abc import Sequence

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.config.sharding import check_sharding_settings
from alphapo_cli.errors import UsageError
from alphapo_cli.launch.launchers.launcher import CellProcesses, Launcher
from alphapo_cli.launch.launchers.local import LocalLauncher, cores, gpus, worker_count
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.sweep.directory import SweepDirectory

# Keys that only some launchers read.
OWN_KEYS = {
    "local": ("workers", "nproc_per_node"),
    "slurm": ("workers", "nproc_per_node", "nodes", "partition", "account", "qos", "constraint", "time", "cpus", "gpus",
              "memory_gb", "requeues", "setup"),
    "ray": ("workers", "nproc_per_node", "nodes", "address", "cpus", "gpus"),
}  # fmt: skip


def check_keys(cfg: LauncherConfig) -> None:
    """Check that the chosen launcher reads every setting that is not at its default.

    Raises:
        UsageError: a setting belongs to other launchers.
    """
    plain = LauncherConfig(name=cfg.name)
    for key in vars(plain):
        if key in ("name", "crashes", *OWN_KEYS[cfg.name]) or getattr(cfg, key) == getattr(plain, key):
            continue
        owners = [name for name, keys in OWN_KEYS.items() if key in keys]
        raise UsageError(f"launcher.{key} has no meaning for launcher={cfg.name}; it belongs to {' and '.join(owners)}")


def check_processes(cfg: LauncherConfig, cells: Sequence[TrainConfig], *, here: bool = True) -> None:
    """Check that the processes of a cell fit its sharding and the GPUs that they are to have, and divide a step.

    Args:
        cfg: the settings of `launcher.*`.
        cells: the cells' configurations.
        here: whether the GPUs of launcher=local are those of this machine.

    Raises:
        UsageError: a cell cannot be sharded so, there are fewer GPUs than processes, or a cell has steps of fewer pairs
            than processes.
    """
    processes = CellProcesses(cfg.nproc_per_node, cfg.nodes)
    there, whose = cfg.gpus, "launcher.gpus is"
    if cfg.name == "local":
        whose, there = "GPUs here:", 0
        asked = processes.world > 1 or any(cell.sharding.cpu_offload for cell in cells)
        if here and asked and any(not cell.trainer.use_cpu for cell in cells):
            there = len(gpus())
    for cell in cells:
        check_sharding_settings(cell, processes.world, cuda=there > 0 or (cfg.name == "local" and not here))
    if processes.world == 1:
        return
    if 0 < there < cfg.nproc_per_node:
        raise UsageError(
            f"launcher.nproc_per_node={cfg.nproc_per_node}: each process takes a GPU, and {whose} {there}; take at most "
            f"{there}, or trainer.use_cpu=true"
        )
    for cell in cells:
        pairs = cell.trainer.per_device_train_batch_size * cell.trainer.gradient_accumulation_steps
        if pairs < processes.world:
            raise UsageError(
                f"{processes.description} of a cell divide its optimizer steps among them, and a step has {pairs} pair(s); "
                f"take at most {pairs}, or raise trainer.gradient_accumulation_steps"
            )


def processes_of(cfg: LauncherConfig, cells: Sequence[TrainConfig]) -> CellProcesses:
    """The processes of each cell, with the cores that those of a node share.

    Args:
        cfg: the settings of `launcher.*`.
        cells: the configurations of the cells to run.

    Returns:
        The processes.
    """
    if cfg.name != "local":
        return CellProcesses(cfg.nproc_per_node, cfg.nodes, max(cfg.cpus, cfg.nproc_per_node))
    abreast = min(worker_count(cfg.workers, cells, cfg.nproc_per_node), len(cells))
    return CellProcesses(cfg.nproc_per_node, 1, cores() // max(1, abreast))


def script(cfg: LauncherConfig, directory: SweepDirectory, cells: int) -> str:
    """The batch script of the launcher, for `--dry-run`.

    Args:
        cfg: the settings of `launcher.*`.
        directory: the sweep's directory.
        cells: the number of cells to run.

    Returns:
        The script; empty for launchers other than Slurm.

    Raises:
        UsageError: submitit is not installed.
    """
    if cfg.name == "slurm" and cells:
        from alphapo_cli.launch.launchers import submission

        return submission.script(cfg, directory.path / "logs", cells)
    return ""


def make_launcher(cfg: LauncherConfig, directory: SweepDirectory, cells: Sequence[TrainConfig]) -> Launcher:
    """Make the launcher that `cfg` names and start its worker processes, if any.

    Args:
        cfg: the settings of `launcher.*`.
        directory: the sweep's directory.
        cells: the configurations of the cells to run.

    Returns:
        The launcher.

    Raises:
        UsageError: submitit or Ray is not installed, or Slurm or the Ray cluster cannot be reached.
    """
    logs = directory.path / "logs"
    if cfg.name == "slurm":
        from alphapo_cli.launch.launchers.slurm import SlurmLauncher

        return SlurmLauncher(cfg, logs)
    if cfg.name == "ray":
        from alphapo_cli.launch.launchers.ray import RayLauncher

        return RayLauncher(cfg, logs)
    if cfg.workers == 0:
        from alphapo_cli.launch.launchers.inline import InlineLauncher

        return InlineLauncher()
    count = min(worker_count(cfg.workers, cells, cfg.nproc_per_node), len(cells))
    return LocalLauncher(count, logs, cfg.nproc_per_node)

"""The launchers by name, and the settings that each of them reads."""

from __future__ import annotations

from collections.abc import Sequence

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.launch.launchers.launcher import Launcher
from alphapo_cli.launch.schema import LauncherConfig
from alphapo_cli.sweep.directory import SweepDirectory

# Keys that only some launchers read.
OWN_KEYS = {
    "local": ("workers",),
    "slurm": ("workers", "partition", "account", "qos", "constraint", "time", "cpus", "gpus", "memory_gb", "requeues",
              "setup"),
    "ray": ("workers", "address", "cpus", "gpus"),
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
    from alphapo_cli.launch.launchers.local import LocalLauncher, worker_count

    return LocalLauncher(min(worker_count(cfg.workers, cells), len(cells)), logs)

"""Submission of an array of cells to Slurm: submitit's executor, and the batch script that it would write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, missing_extra
from alphapo_cli.launch.schema import LauncherConfig


def make_executor(cfg: LauncherConfig, logs: Path, *, dry: bool = False) -> Any:
    """Make submitit's executor from the settings of `launcher.*`.

    Args:
        cfg: the settings.
        logs: submitit's files are written below `logs`/slurm.
        dry: whether the executor only writes a script, which works on a machine without Slurm.

    Returns:
        A submitit.AutoExecutor.

    Raises:
        UsageError: submitit is not installed, or there is no sbatch on this machine and `dry` is false.
    """
    try:
        import submitit
    except ImportError:
        error = missing_extra("submitit", "slurm")
        raise error from None
    if shutil.which("sbatch") is None and not dry:
        raise UsageError(
            "launcher=slurm: there is no sbatch on this machine; type the line on a login node, or use launcher=local"
        )
    if dry:

        class Unsubmitted(submitit.SlurmExecutor):  # reports Slurm as available without looking for it
            @classmethod
            def affinity(cls) -> int:
                return 1

        executor = submitit.AutoExecutor(folder=logs / "slurm", cluster="debug")
        executor.cluster, executor._executor = "slurm", Unsubmitted(logs / "slurm", max_num_timeout=cfg.requeues)
    else:
        executor = submitit.AutoExecutor(folder=logs / "slurm", cluster="slurm", slurm_max_num_timeout=cfg.requeues)
    optional = {
        "slurm_partition": cfg.partition,
        "slurm_account": cfg.account,
        "slurm_qos": cfg.qos,
        "slurm_constraint": cfg.constraint,
        "mem_gb": cfg.memory_gb,
        "slurm_array_parallelism": cfg.workers,
        "slurm_setup": list(cfg.setup) or None,
        "gpus_per_node": cfg.gpus or None,
    }
    executor.update_parameters(
        name="alphapo", timeout_min=cfg.time, cpus_per_task=max(cfg.cpus, cfg.nproc_per_node), nodes=cfg.nodes,
        tasks_per_node=1,
        **{key: value for key, value in optional.items() if value is not None},
    )  # fmt: skip
    return executor


def script(cfg: LauncherConfig, logs: Path, cells: int) -> str:
    """The batch script that would be submitted for `cells` cells."""
    slurm = make_executor(
        cfg, logs, dry=True
    )._executor  # before the import below: its error is one line where submitit is not installed
    from submitit.slurm.slurm import _make_sbatch_string

    parallel = min(cells, cfg.workers or cells)
    slurm.update_parameters(array_parallelism=parallel)
    settings = {**slurm.parameters, "map_count": cells}
    return str(_make_sbatch_string(command=slurm._submitit_command_str, folder=logs / "slurm", **settings))

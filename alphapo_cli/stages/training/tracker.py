"""The W&B run that belongs to a run directory."""

from __future__ import annotations

from dataclasses import dataclass

from alphapo_cli.config.compose import to_dict
from alphapo_cli.config.keys import leaves
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.storage.hashing import digest
from alphapo_cli.tracking.tracker import Tracker
from alphapo_cli.tracking.wandb import open_tracker


@dataclass(frozen=True)
class Group:
    """The sweep that a run belongs to, for W&B."""

    name: str
    job_type: str = "train"


def run_tracker(cfg: TrainConfig, directory: RunDirectory, group: Group | None) -> Tracker:
    """Open the W&B run of a run directory, with the rows of metrics.jsonl so far."""
    # The id depends on the manifest too, so that a run that was started over does not get rows of the earlier one.
    begun = [str(directory.path.resolve()), directory.read_manifest()]
    return open_tracker(
        cfg.tracking,
        directory.path,
        run_id=digest([directory.settings(), *begun])[:16],
        name=directory.path.name,
        group=group.name if group else cfg.tracking.group,
        job_type=group.job_type if group else "train",
        config=leaves(to_dict(cfg)),
        history=directory.rows(),
    )

"""Model and data that a configuration names, looked at before anything heavy is imported."""

from __future__ import annotations

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.data.folders import find
from alphapo_cli.data.load import check_source, paths_of, placed
from alphapo_cli.modeling.locations import locate
from alphapo_cli.runs.directory import RunDirectory


def check_model(model: str, revision: str | None = None, *, key: str) -> None:
    """Check that the model which a command names is there, by the code with which stages find it.

    Args:
        model: a run, a directory with a model, or a name of the hub, which is believed.
        revision: of a hub model.
        key: what named it, for messages.

    Raises:
        UsageError: there is no such path, or the directory holds no model.
    """
    locate(model, revision, key=key)


def check_paths(cfg: TrainConfig, *, weightless: bool = False) -> None:
    """Check that the model's directory and the files of data are there, by the code with which training finds them.

    Args:
        cfg: the configuration.
        weightless: whether the model's directory may lack weights.

    Raises:
        UsageError: one of them is missing or holds something else. Names of the hub are believed.
    """
    check_source(cfg.data)
    if cfg.model.path is not None:
        locate(cfg.model.path, cfg.model.revision, weightless=weightless)
    for paths, split, setting in (
        (cfg.data.path, cfg.data.split, "data.split"),
        (cfg.data.eval_path, cfg.data.eval_split or "", "data.eval_split"),
    ):
        for path in paths_of(paths):
            find(placed(path, cfg.data), split, cfg.data.config, setting)


def changed_data(run: RunDirectory, cfg: TrainConfig) -> list[str]:
    """The settings of data files whose content has changed since a run was made, see `RunDirectory.changed_data`."""
    return run.changed_data(fingerprints(cfg.data))

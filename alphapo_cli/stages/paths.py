"""Model and data that a configuration names, looked at before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from alphapo_cli.config.schema import DataConfig, ModelConfig, TrainConfig
from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.data.folders import find
from alphapo_cli.data.load import check_source, paths_of, placed
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.modeling.locations import locate
from alphapo_cli.pairs.scoring.schema import ScorerConfig
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
    """Check that models and the files of data are there, by the code with which training finds them.

    Args:
        cfg: the configuration.
        weightless: whether the model's directory may lack weights.

    Raises:
        UsageError: one of them is missing or holds something else. Names of the hub are believed.
    """
    if cfg.model.path is not None:
        locate(cfg.model.path, cfg.model.revision, weightless=weightless)
    check_others(cfg.model, weightless=weightless)
    check_data(cfg.data)


def check_others(cfg: ModelConfig, *, weightless: bool = False) -> None:
    """Check that the models beside the policy are there: `model.reference` and `model.guide`; raises UsageError."""
    for key, name in (("model.reference", cfg.reference), ("model.guide", cfg.guide)):
        if name is not None:
            locate(name, key=key, weightless=weightless)


def check_data(cfg: DataConfig) -> None:
    """Check that the files of data are there, by the code with which they are found when they are read.

    Args:
        cfg: the data settings.

    Raises:
        UsageError: one of them is missing, or a setting beside data=glassbox is not read.
    """
    check_source(cfg)
    for paths, split, setting in (
        (cfg.path, cfg.split, "data.split"),
        (cfg.eval_path, cfg.eval_split or "", "data.eval_split"),
    ):
        for path in paths_of(paths):
            find(placed(path, cfg), split, cfg.config, setting)


def check_scorers(cfg: ScorerConfig, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Check that the models of scorers are there.

    Args:
        cfg: of `scorer`.
        more: column -> settings, of `scorers`.

    Raises:
        UsageError: one of them is missing. Names of the hub are believed.
    """
    named = [(f"scorer.{key}", value) for key, value in (("model", cfg.model), ("reference", cfg.reference))]
    for column, settings in more.items():
        if isinstance(settings, Mapping):
            named += [(f"scorers.{column}.{key}", settings.get(key)) for key in ("model", "reference")]
    for key, name in named:
        if isinstance(name, str):
            locate(name, key=key)


def check_judge(cfg: JudgeConfig) -> None:
    """Check that the model of a local judge is there.

    Args:
        cfg: the judge settings.

    Raises:
        UsageError: its directory is missing. Names of the hub are believed.
    """
    if cfg.name == "vllm" and cfg.model is not None:
        locate(cfg.model, key="judge.model")


def changed_data(run: RunDirectory, cfg: TrainConfig) -> list[str]:
    """The settings of data files whose content has changed since a run was made, see `RunDirectory.changed_data`."""
    return run.changed_data(fingerprints(cfg.data))

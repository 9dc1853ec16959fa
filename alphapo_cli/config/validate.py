"""Validation of a typed configuration: ranges, choices and rules across fields, with all errors in one line."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from alphapo_cli.config.schema import (
    DataConfig,
    ObjectiveConfig,
    ProbeConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
)
from alphapo_cli.errors import ConfigError, is_plain, nearest

TAG, NAME = 64, 128  # characters that W&B allows in a tag, and in the name of a project
_NAMES = ("name", "dir", "generator")  # of what is written, and printed
_NOT_IN_PROJECTS = "/\\#?%:"
# layout -> values of model.attention that do not work with it
UNFIT = {"packed": ("eager", "flash_attention_2"), "padded": ("flex",)}


def normalise(value: Any) -> Any:
    """Replace -0.0 by 0.0 everywhere, in place, so that equal configurations have equal hashes."""
    if is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            setattr(value, f.name, normalise(getattr(value, f.name)))
        return value
    if isinstance(value, dict):
        return {k: normalise(v) for k, v in value.items()}
    if isinstance(value, list):
        return [normalise(v) for v in value]
    return value + 0.0 if isinstance(value, float) else value


def check(cfg: Any) -> None:
    """Check ranges, choices and rules across fields of the whole configuration.

    Raises:
        ConfigError: at least one is violated; the message lists all.
    """
    faults = list(_faults(cfg, ""))
    if faults:
        raise ConfigError("; ".join(faults))


def _faults(cfg: Any, prefix: str) -> Iterable[str]:
    for f in fields(cfg):
        value, key = getattr(cfg, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from _faults(value, f"{key}.")
            continue
        yield from fault(key, value, f.metadata)
        if f.name in _NAMES and isinstance(value, str) and not is_plain(value):
            yield f"{key}={value}: must have no newline and no control character"
        if "texts" in f.metadata and not _are_texts(value):
            yield f"{key}={value}: must be a text, or a list of texts such as [a,b]"
        if "date" in f.metadata and not _is_day(value):
            yield f"{key}={value}: must be a day in ISO form, such as 2024-07-26"
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from fault(f"{key}.{name}", inner, {})
    if isinstance(cfg, TrainerConfig) and cfg.max_steps == 0:
        yield f"{prefix}max_steps=0: must be at least 1, or -1 for {prefix}num_train_epochs"
    if isinstance(cfg, TrackingConfig):
        yield from _tracking_faults(cfg, prefix)
    if isinstance(cfg, RunConfig) and cfg.name and _leaves(cfg.name):
        yield f"{prefix}name={cfg.name}: must be a name inside {prefix}dir, without '..'; set {prefix}dir to write elsewhere"
    if isinstance(cfg, TrainConfig) and cfg.model.attention in UNFIT[cfg.layout]:
        other = next(layout for layout in UNFIT if layout != cfg.layout)
        yield f"model.attention={cfg.model.attention}: not with layout={cfg.layout}; add layout={other}, or leave it auto"
    if isinstance(cfg, TrainConfig):
        yield from _best_faults(cfg)
        yield from _fraction_faults(cfg)
    if isinstance(cfg, ProbeConfig) and not all(opening.strip() for opening in cfg.refusals):
        yield f"{prefix}refusals: every answer begins with an empty text; leave it out"
    if isinstance(cfg, DataConfig) and cfg.weights is not None:
        yield from _weight_faults(cfg, prefix)
    if isinstance(cfg, ObjectiveConfig) and cfg.gamma is not None and cfg.gamma_beta_ratio is not None:
        yield "objective.gamma and objective.gamma_beta_ratio are both set: give one (gamma = beta x ratio)"


def fault(key: str, value: Any, limits: Mapping[str, Any]) -> Iterable[str]:
    """Messages about a value that violates its `limits` (ge, gt, le, lt, choices) or is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value}: must be a finite number"
        return
    if value is None:
        return
    if "choices" in limits and value not in limits["choices"]:
        yield f"{key}={value}: no such choice{nearest(str(value), limits['choices'])} (choices: {', '.join(limits['choices'])})"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    tests = {"ge": lambda v, b: v >= b, "gt": lambda v, b: v > b, "le": lambda v, b: v <= b, "lt": lambda v, b: v < b}
    for name, word in words.items():
        if name in limits and not tests[name](value, limits[name]):
            yield f"{key}={value}: must be {word} {limits[name]}"


def _fraction_faults(cfg: TrainConfig) -> Iterable[str]:
    """Kept models must lie within training: model/ is the last one, and the start is known."""
    for fraction in cfg.trainer.save_models_at:
        if not 0 < fraction < 1:
            yield f"trainer.save_models_at: {fraction:g} is no fraction of training above 0 and below 1 (model/ is the last)"


def _best_faults(cfg: TrainConfig) -> Iterable[str]:
    metric, patience = cfg.trainer.metric_for_best_model, cfg.guard.patience
    users = {
        "trainer.load_best_model_at_end=true": cfg.trainer.load_best_model_at_end,
        f"guard.patience={patience}": patience,
    }
    if metric is None:
        users["trainer.greater_is_better"] = cfg.trainer.greater_is_better is not None
        for typed in (name for name, used in users.items() if used):
            yield f"{typed}: of which metric? Add trainer.metric_for_best_model=KEY (alphapo metrics lists the keys)"
    elif not any(users.values()):
        yield (
            f"trainer.metric_for_best_model={metric}: nothing reads it; add trainer.load_best_model_at_end=true, or "
            "guard.patience=N"
        )


def _are_texts(value: Any) -> bool:
    """Whether a value is null, a text, or a list of texts that is not empty."""
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))
    )


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _weight_faults(cfg: DataConfig, prefix: str) -> Iterable[str]:
    weights = cfg.weights or []
    paths = len(cfg.path) if isinstance(cfg.path, list) else int(cfg.path is not None)
    shown = f"{prefix}weights=[{','.join(f'{weight:g}' for weight in weights)}]"
    if len(weights) != paths:
        yield f"{shown}: {len(weights)} weights for {paths} entries of {prefix}path; give one for each"
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        yield f"{shown}: every weight must be above 0"


def _leaves(name: str) -> bool:
    """Whether a directory of that name would lie outside its parent."""
    path = PurePath(name)
    return path.is_absolute() or not path.parts or ".." in path.parts


def _tracking_faults(cfg: TrackingConfig, prefix: str) -> Iterable[str]:
    """What W&B would refuse when the run is opened, after the data has been prepared."""
    for tag in cfg.tags:
        if not 1 <= len(tag) <= TAG:
            yield f"{prefix}tags: '{tag[:20]}{'...' if len(tag) > 20 else ''}' has {len(tag)} characters; W&B takes 1 to {TAG}"
    found = [char for char in _NOT_IN_PROJECTS if char in cfg.project]
    if not 1 <= len(cfg.project) <= NAME:
        yield f"{prefix}project: has {len(cfg.project)} characters; W&B takes 1 to {NAME}"
    elif found:
        more = f" (an entity goes into {prefix}entity)" if "/" in found else ""
        yield f"{prefix}project={cfg.project}: W&B allows no {' '.join(found)} in it{more}"
    for name in ("entity", "group"):
        value = getattr(cfg, name)
        if value is not None and not 1 <= len(value.strip()) <= NAME:
            yield f"{prefix}{name}: has {len(value.strip())} characters; W&B takes 1 to {NAME}"
    if cfg.entity is not None and ("/" in cfg.entity or any(char.isspace() for char in cfg.entity.strip())):
        yield f"{prefix}entity={cfg.entity}: a user's or team's name, without '/' and spaces"

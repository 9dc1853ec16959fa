"""The embedded world's settings belong to its own model on its own data; a model or data of the user's never get them.

Its small model needs a learning rate a thousand times that of the published recipe, and a user's model must not be
trained with it, nor on the world's pairs, because something was left out of a command line. So what is left out is the
world's only where nothing of the user's own was named, and its trainer and probe settings are chosen here, after it is
known which model and data are meant; conf/data/glassbox.yaml, which knows the data alone, does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from alphapo_cli.config.overrides import Line, Sources
from alphapo_cli.config.schema import DataConfig, ModelConfig
from alphapo_cli.errors import ConfigError

WORLD = "glassbox"
# The keys that name a model, and those that name data.
NAMING = {"model": ("path", "source"), "data": ("path", "eval_path", "name", "source")}
_DEFAULT = "default"  # the choice in conf/train.yaml of what the world brings
_BRINGS = ("trainer", "probe")
MAX_LENGTH = 64  # tokens of a pair, which is more than any of the world's has under its model's tokenizer


def naming(layer: Line) -> dict[str, Any]:
    """The keys of a layer that name a model or data, with their values."""
    keys = {f"{group}.{key}" for group, names in NAMING.items() for key in names}
    return {key: value for key, value in layer.values.items() if key in keys}


def names(layers: Sequence[Line], group: str) -> bool:
    """Whether a layer of overrides names the model or the data.

    Args:
        layers: the overrides.
        group: model or data.

    Returns:
        True where it chooses the group or sets a key of it that names one.
    """
    return _chooses(layers, group) or any(key.startswith(f"{group}.") for layer in layers for key in naming(layer))


def _chooses(layers: Sequence[Line], group: str) -> bool:
    """Whether a layer of overrides chooses from a group."""
    return any(choice.startswith(f"{group}=") for layer in layers for choice in layer.groups)


def is_plain(layers: Sequence[Line], sources: Sources) -> bool:
    """Whether nothing but the world can be meant, so that it need not be composed to find out.

    Args:
        layers: the overrides.
        sources: the directories of YAML files; the user's may say anything.

    Returns:
        False where a model, data or an experiment is named.
    """
    own = sources.user is not None or _chooses(layers, "experiment")
    return not own and not names(layers, "model") and not names(layers, "data")


def choices(cfg: DictConfig, layers: Sequence[Line], chosen: Mapping[str, str]) -> list[str]:
    """Check that model and data of a training go together, and choose the groups that go with both.

    Args:
        cfg: the configuration under all layers.
        layers: the overrides.
        chosen: the choice in every group, be it by default, by an experiment or by an override.

    Returns:
        trainer=glassbox and probe=glassbox for the world's model on the world's data, where nothing else is chosen.

    Raises:
        ConfigError: the user's model was named without data, or data without a model; or settings of the world are
            chosen for other data.
    """
    if any(
        cfg[group].source not in _sources(made_by) for group, made_by in (("model", ModelConfig), ("data", DataConfig))
    ):
        return []  # which validation says
    own_model, own_data = _own(cfg)
    if own_model and not own_data and not names(layers, "data"):
        named = f"model.path={cfg.model.path}" if cfg.model.path is not None else f"model={cfg.model.source}"
        raise ConfigError(
            f"{named}: on which data? give data=... too (data=jsonl data.path=FILE, data=hub data.name=OWNER/DATASET, or "
            "data=glassbox for the embedded world's pairs)"
        )
    if own_data and not own_model and not names(layers, "model"):
        named = f"data={chosen['data']}" if chosen.get("data", WORLD) != WORLD else f"data.source={cfg.data.source}"
        raise ConfigError(
            f"{named}: which model? give model.path=DIRECTORY or model=from_scratch too (model=glassbox is the embedded "
            "world's own small model)"
        )
    for group in _BRINGS:
        if chosen.get(group) == WORLD and own_data:
            raise ConfigError(
                f"{group}={WORLD}: settings of the embedded world, which are for data={WORLD}; leave it out, or take "
                f"another {group}"
            )
    return [] if own_model or own_data else [c for c in brought(layers) if chosen.get(c.partition("=")[0]) == _DEFAULT]


def brought(layers: Sequence[Line]) -> list[str]:
    """The choices that the world brings, but for groups that a layer of overrides chooses from."""
    return [f"{group}={WORLD}" for group in _BRINGS if not _chooses(layers, group)]


def make_effective(cfg: DictConfig, said: Collection[str]) -> None:
    """Set what follows from the model and data of a training, so that the configuration shows what is used.

    Args:
        cfg: the configuration under all layers; changed in place.
        said: the keys that overrides or YAML files set.
    """
    if cfg.model.path is not None:
        cfg.model.source = "path"
    if not any(_own(cfg)) and "data.max_length" not in said:
        cfg.data.max_length = MAX_LENGTH


def make_prompts_effective(cfg: DictConfig) -> None:
    """Set the source of prompts to files where a path is named, which wins over the world; changes `cfg` in place."""
    if cfg.data.source == WORLD and cfg.data.path is not None:
        cfg.data.source = "files"


def _sources(made_by: type[Any]) -> tuple[str, ...]:
    """The values that a schema takes for `source`."""
    found: tuple[str, ...] = made_by.__dataclass_fields__["source"].metadata["choices"]
    return found


def _own(cfg: DictConfig) -> tuple[bool, bool]:
    """Whether the model, and whether the data, are others than the world's."""
    return cfg.model.path is not None or cfg.model.source != WORLD, cfg.data.source != WORLD

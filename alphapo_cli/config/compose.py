"""Composition of conf/ and command-line overrides into one typed, validated configuration.

Hydra composes the choice of config groups (and nothing else); values from the command line are then merged here, one by
one, into the typed schema. That is stricter than hydra.compose, which accepts `+typo=3` and `hydra.run.dir=x`, names
the key and the nearest valid one in every error, and lets a sweep compose once per choice of groups.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from alphapo_cli.config import embedded_world
from alphapo_cli.config.interpolation import check_interpolations
from alphapo_cli.config.key_types import expected, is_free, is_text
from alphapo_cli.config.keys import leaves, require, suggestion
from alphapo_cli.config.objective_parts import (
    GAMMAS,
    check_parts,
    choose_optional,
    part_defaults,
    pop_optional,
    resolve_gamma,
)
from alphapo_cli.config.overrides import Line, Sources, shown
from alphapo_cli.config.shipped import shipped
from alphapo_cli.config.validate import check, normalise
from alphapo_cli.errors import ConfigError, first_line

T = TypeVar("T")


@functools.lru_cache(maxsize=256)
def _compose_groups(primary: str, groups: tuple[str, ...], user: Path | None) -> tuple[DictConfig, dict[str, str]]:
    """The composed configuration, and the choice made in every group."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(shipped("conf").resolve())):
            if user is not None:
                # hydra.searchpath comes after the main folder, but a user's files must override shipped ones.
                loader: Any = GlobalHydra.instance().config_loader()
                search = loader.get_search_path()
                search.prepend("user", f"file://{user}", SearchPathQuery(provider="main"))
                loader.repository.initialize_sources(search)
            cfg = hydra_compose(config_name=primary, overrides=list(groups), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{primary}: {first_line(cause)}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{primary} with {' '.join(groups)}: {' '.join(str(error).split())}") from error
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def compose(primary: str, schema: type[T], layers: Sequence[Line], sources: Sources) -> T:
    """Compose the primary config `primary` (a file of conf/) under `layers`, of which later ones override earlier ones.

    Returns:
        The validated configuration, an instance of `schema`.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; all values out of range in one line.
    """
    cfg, _ = _resolved(primary, schema, layers, sources)
    return _checked(_typed(cfg))  # type: ignore[no-any-return]


def compose_each(
    primary: str, schema: type[T], layers: Sequence[Line], cells: Sequence[Line], sources: Sources
) -> list[T]:
    """Call `compose` under [*layers, cell] for every cell of a sweep, once for all cells that set the same keys.

    Returns:
        One configuration per cell, in order.

    Raises:
        ConfigError: as for `compose`.
    """
    composed: dict[Any, tuple[DictConfig, dict[str, dict[str, Any]], T]] = {}
    configs = []
    for cell in cells:
        # What a cell's model and data are decides on the choice of other groups.
        kind = (cell.groups, tuple(cell.values), repr(embedded_world.naming(cell)))
        if kind not in composed:
            cfg, parts = _resolved(primary, schema, [*layers, cell], sources)
            composed[kind] = cfg, parts, _typed(cfg)
            typed = copy.deepcopy(composed[kind][2])
        else:
            cfg, parts, first = composed[kind]
            typed = copy.deepcopy(first)
            _apply(cfg, cell, parts, sources)
            # Setting gamma or gamma_beta_ratio resets the other one.
            keys = [*cell.values, *(GAMMAS if any(key in GAMMAS for key in cell.values) else ())]
            touched = {path: parts[path] for path in parts if any(key.startswith(f"{path}.") for key in keys)}
            check_parts(cfg, touched)
            for key in [*keys, *touched]:
                _set_key(typed, key, OmegaConf.select(cfg, key))
        configs.append(_checked(typed))
    return configs


def _resolved(
    primary: str, schema: type[Any], layers: Sequence[Line], sources: Sources
) -> tuple[DictConfig, dict[str, dict[str, Any]]]:
    """The typed configuration under `layers`, and the parameters that its objective's parts declare."""
    groups = _by_group(choice for layer in layers for choice in layer.groups)
    training = primary == "train"
    if training and embedded_world.is_plain(layers, sources):  # the commonest lines are composed once
        groups |= _by_group(embedded_world.brought(layers))
    cfg, chosen = _under(primary, schema, groups, layers, sources)
    if training:
        more = embedded_world.choices(cfg, layers, chosen.choices)
        if more:
            cfg, chosen = _under(primary, schema, groups | _by_group(more), layers, sources)
        embedded_world.make_effective(cfg, {*chosen.written, *(key for layer in layers for key in layer.values)})
    if primary in ("generate", "pairs"):
        embedded_world.make_prompts_effective(cfg)
    return cfg, chosen.parts


def _by_group(choices: Iterable[str]) -> dict[str, str]:
    """Group -> "group=choice", of which later ones replace earlier ones."""
    return {choice.partition("=")[0]: choice for choice in choices}


def _under(
    primary: str, schema: type[Any], groups: Mapping[str, str], layers: Sequence[Line], sources: Sources
) -> tuple[DictConfig, _Chosen]:
    """The configuration of a choice of `groups` under the values of `layers`."""
    chosen = _chosen(primary, schema, tuple(groups.values()), sources)  # type: ignore[arg-type]
    cfg = copy.deepcopy(chosen.cfg)
    for layer in layers:
        _apply(cfg, layer, chosen.parts, sources)
    check_parts(cfg, chosen.parts)
    return cfg, chosen


def _typed(cfg: DictConfig) -> Any:
    """The configuration as an instance of its schema; raises ConfigError for a value of a wrong type or a missing one."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:  # a recipe's constants that nobody knows, or models of the user's
        raise ConfigError(f"{missing[0]} is required and has no default; type {missing[0]}=VALUE")
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error


def _checked(typed: Any) -> Any:
    """The configuration, normalised and validated."""
    typed = normalise(typed)
    check(typed)
    return typed


def _set_key(typed: Any, key: str, value: Any) -> None:
    """Set a dotted key of nested dataclasses and mappings."""
    *path, name = key.split(".")
    for part in path:
        typed = typed[part] if isinstance(typed, dict) else getattr(typed, part)
    plain = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    if isinstance(typed, dict):
        typed[name] = plain
    else:
        setattr(typed, name, plain)


class _Chosen(NamedTuple):
    """A choice of groups, typed, before values are set.

    Attributes:
        cfg: the configuration.
        parts: dotted key of an objective's part -> the parameters that its YAML declares.
        choices: the choice in every group.
        written: the keys that YAML files set.
    """

    cfg: DictConfig
    parts: dict[str, dict[str, Any]]
    choices: Mapping[str, str]
    written: frozenset[str]


@functools.lru_cache(maxsize=256)  # the cells of a sweep differ in values more often than in groups
def _chosen(primary: str, schema: type[Any], choice: tuple[str, ...], sources: Sources) -> _Chosen:
    """Compose a choice of groups."""
    groups = _by_group(choice)
    optional = pop_optional(groups)
    composed, choices = _compose_groups(primary, tuple(groups.values()), sources.user)
    raw = copy.deepcopy(composed)
    check_interpolations(leaves(OmegaConf.to_container(raw, resolve=False)))
    choose_optional(raw, optional)
    _drop_foreign_groups(raw, primary, schema, choices, groups)
    parts = part_defaults(raw, choices.get("objective", ""), sources)
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(schema), raw)
    except OmegaConfBaseException as error:
        reason = first_line(error)
        if isinstance(error, ConfigKeyError) and error.full_key:
            known = {**leaves(raw), **leaves(OmegaConf.structured(schema))}
            reason += suggestion(error.full_key, error.full_key, [key for key in known if key != error.full_key])
        raise ConfigError(f"conf/{primary}.yaml with {' '.join(groups.values())}: {reason}") from error
    assert isinstance(cfg, DictConfig)
    for key in OmegaConf.missing_keys(raw):  # merging leaves a default in place of what a YAML asks for
        OmegaConf.update(cfg, key, MISSING, force_add=True)
    resolve_gamma(cfg, choices, sources)
    return _Chosen(cfg, parts, choices, frozenset(leaves(raw)))


def _drop_foreign_groups(
    raw: DictConfig, primary: str, schema: type[Any], choices: Mapping[str, str], groups: Mapping[str, str]
) -> None:
    """Drop groups of other stages, which an experiment may choose too; raises ConfigError where the user chose one."""
    known = [f.name for f in fields(schema)]
    for group in [g for g in choices if g in raw and g not in known]:
        if group in groups:
            raise ConfigError(f"{groups[group]}: {primary} has no group '{group}' (its keys: {', '.join(known)})")
        with open_dict(raw):
            del raw[group]


def _apply(cfg: DictConfig, layer: Line, parts: Mapping[str, Mapping[str, Any]], sources: Sources) -> None:
    """Set the values of a layer; raises ConfigError for an unknown key or a wrong type."""
    values = layer.values
    check_interpolations({**values, **layer.texts})
    given = [key for key in GAMMAS if values.get(key) is not None]
    if len(given) == 2:
        raise ConfigError(f"{given[0]} and {given[1]} are both given: give one (gamma = beta x ratio)")
    for key in given:
        other = GAMMAS[1 - GAMMAS.index(key)]
        OmegaConf.update(cfg, other, None)
    for key, value in values.items():
        require(cfg, key, value, parts, sources)
        if is_text(cfg, key):
            value = layer.texts.get(key, value)
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=is_free(key))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={shown(value)}: {expected(cfg, key) or first_line(error)}") from error


def to_yaml(cfg: Any) -> str:
    """The resolved configuration, a dataclass, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))  # takes half the time of a typed container


def to_dict(cfg: Any) -> dict[str, Any]:
    """The resolved configuration, a dataclass, as plain containers."""
    return asdict(cfg)

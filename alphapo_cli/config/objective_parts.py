"""Rules of the objective's configuration: which gamma counts, and which parameters its parts take.

The parameters of a score, shape or link are declared by its YAML (and equal its function's, which a test checks), so
this stays free of torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from alphapo_cli.config.overrides import Sources, shown
from alphapo_cli.errors import ConfigError, nearest

# Kinds of parts that every objective chooses in its defaults, and those that it may leave out, with what stands then.
REQUIRED = ("score", "shape", "link")
OPTIONAL = {"token": "all", "margin": "none", "weight": "none", "regulariser": "none", "schedule": "constant"}
PARTS = (*REQUIRED, *OPTIONAL)
GAMMAS = ("objective.gamma", "objective.gamma_beta_ratio")


# (score, link, whether the chosen side's NLL is added) -> what these are called when alpha = 0 makes a power the identity.
_AT_ZERO = {
    ("mean", "logistic", False): "SimPO",
    ("ratio_sum", "logistic", False): "DPO",
    ("ratio_mean", "squared", False): "IPO",
    ("sum", "logistic", True): "CPO",
    ("odds", "logistic", True): "ORPO",
}


def at_zero(settings: Mapping[str, Any]) -> str | None:
    """The published method that an objective with a power shape is at alpha = 0; None where it has no name of its own.

    `settings`: a configuration's dotted keys and values.
    """
    if settings.get("objective.shape.name") != "power":
        return None
    if any(settings.get(f"objective.{kind}.name", name) != name for kind, name in OPTIONAL.items()):
        return None
    score, link = (settings.get(f"objective.{kind}.name") for kind in ("score", "link"))
    return _AT_ZERO.get((str(score), str(link), bool(settings.get("objective.nll"))))


def settle_gamma(cfg: DictConfig, choices: Mapping[str, str], sources: Sources) -> None:
    """The gamma of an experiment replaces its objective's, that of an objective the one's it builds on.

    Raises:
        ConfigError: one file sets both gamma and gamma_beta_ratio.
    """
    if "objective" not in cfg or any(OmegaConf.select(cfg, key) is None for key in GAMMAS):
        return
    said = _gammas_in("experiment", choices.get("experiment", ""), sources)
    said = said or _gammas_in("objective", choices["objective"], sources)
    if said is None or len(said[1]) != 1:
        where = said[0] if said else f"objective={choices['objective']}"
        raise ConfigError(f"{where}: gamma and gamma_beta_ratio are both set; give one (gamma = beta x ratio)")
    OmegaConf.update(cfg, GAMMAS[1 - GAMMAS.index(said[1][0])], None)


def _gammas_in(group: str, name: str, sources: Sources) -> tuple[Path, list[str]] | None:
    """The file of `name`, or of what it builds on, that first sets a gamma, and which of GAMMAS it sets."""
    file = sources.file(group, name)
    if file is None:
        return None
    content = _plain(file)
    set_there = [k for k in GAMMAS if OmegaConf.select(content, k.removeprefix(f"{group}.")) is not None]
    if set_there:
        return file, set_there
    bases = [b for b in content.get("defaults", []) if isinstance(b, str) and b != "_self_"]
    return next((found for base in reversed(bases) if (found := _gammas_in(group, base, sources))), None)


def _plain(file: Path | None) -> DictConfig:
    """A file's content, to be read only."""
    if file is None:
        return OmegaConf.create()
    stat = file.stat()
    return _loaded(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)  # a compose looks at every part's file, and a sweep composes for every cell
def _loaded(file: Path, mtime_ns: int, size: int) -> DictConfig:
    try:
        loaded = OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a YAML file ({' '.join(str(error).split())}); correct it") from error
    return loaded if isinstance(loaded, DictConfig) else OmegaConf.create()


@functools.cache
def declared(kind: str, name: str) -> dict[str, Any]:
    """The keys and defaults that the shipped YAML of a part declares; empty where there is none."""
    return {str(k): v for k, v in _plain(Sources().file(f"objective/{kind}", name)).items()}


def part_defaults(raw: DictConfig, objective: str, sources: Sources) -> dict[str, dict[str, Any]]:
    """For objective.score, .shape, .link and so on: the keys and defaults that the chosen part's YAML declares.

    Raises:
        ConfigError: the objective chooses no part of a kind, one that is not there, or sets what no part has.
    """
    declared: dict[str, dict[str, Any]] = {}
    groups = sources.groups()
    for kind in PARTS if "objective" in raw else ():
        chosen = OmegaConf.select(raw, f"objective.{kind}") if isinstance(raw.objective, DictConfig) else None
        known = {name: _plain(sources.file(f"objective/{kind}", name)) for name in groups[f"objective/{kind}"]}
        name = chosen.get("name", OPTIONAL.get(kind)) if isinstance(chosen, DictConfig) else OPTIONAL.get(kind)
        if kind in OPTIONAL and name not in known:
            raise ConfigError(
                f"objective={objective}: its YAML chooses the {kind} {name!r}; there is no such {kind}"
                f"{nearest(str(name), known)} (choices: {', '.join(known)})"
            )
        if name not in known:
            raise ConfigError(
                f"objective={objective}: its YAML chooses {f'no {kind}' if name is None else f'the {kind} {name!r}'}; add "
                f"'- {kind}: NAME' to its defaults (choices: {', '.join(known)})"
            )
        # Settings of another part stay behind when a part is switched; what no part has is a mistake.
        anywhere = sorted({str(k) for part in known.values() for k in part if k != "name"})
        for key in chosen or ():
            if key != "name" and key not in anywhere:
                raise ConfigError(
                    f"objective={objective}: unknown key 'objective.{kind}.{key}' in its YAML{nearest(str(key), anywhere)}"
                )
        declared[f"objective.{kind}"] = {str(k): v for k, v in known[str(name)].items()}
        if kind in OPTIONAL:  # no defaults list has put them there
            whole = {**declared[f"objective.{kind}"], **(chosen or {})}
            OmegaConf.update(raw, f"objective.{kind}", whole, merge=False, force_add=True)
    return declared


def leave_optional(groups: dict[str, str]) -> dict[str, str]:
    """Takes the choices of kinds that an objective may leave out from `groups`, which Hydra would not know where to put.

    Returns kind -> name.
    """
    taken = {}
    for kind in OPTIONAL:
        choice = groups.pop(f"objective/{kind}", None)
        if choice is not None:
            taken[kind] = choice.partition("=")[2]
    return taken


def choose_optional(raw: DictConfig, chosen: Mapping[str, str]) -> None:
    """Put those choices into a composed configuration; settings of the part that stood there go."""
    for kind, name in chosen.items():
        key = f"objective.{kind}"
        if "objective" in raw and OmegaConf.select(raw, f"{key}.name") != name:
            OmegaConf.update(raw, key, {"name": name}, merge=False, force_add=True)


def check_parts(cfg: DictConfig, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """A part's parameters have the type of the default in its YAML; settings left from another part are dropped."""
    for path, declared in parts.items():
        chosen = OmegaConf.select(cfg, path)
        settings = dict(declared)
        for key, value in (chosen or {}).items():
            if key not in declared:
                continue  # objective/shape=identity under an objective whose YAML sets shape.alpha
            settings[key] = _like(declared[key], value, f"{path}.{key}")
        OmegaConf.update(cfg, path, settings, merge=False)


def _like(default: Any, value: Any, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, float):
        good, value = number, float(value) if number else value
    elif isinstance(default, int):
        good = number and float(value).is_integer()
        value = int(value) if good else value  # 20.0 is 20, also in the name of a run
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:
        good = True
    if not good:
        kind = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}[type(default)]
        raise ConfigError(f"{key}={shown(value)}: must be {kind}")
    return value

"""Rules of the objective's configuration: gamma or gamma_beta_ratio, and the parameters that its parts take.

The parameters of a score, shape or link are declared by its YAML (and equal its function's, which a test checks), so
that this module needs no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from alphapo_cli.config.overrides import Sources, shown
from alphapo_cli.config.renamed import suggestion
from alphapo_cli.errors import ConfigError, nearest

# Kinds of parts that every objective chooses in its defaults list; those that it may omit, with their defaults.
REQUIRED = ("score", "shape", "link")
OPTIONAL = {"token": "all", "margin": "none", "weight": "none", "regulariser": "none", "schedule": "constant"}
PARTS = (*REQUIRED, *OPTIONAL)
GAMMAS = ("objective.gamma", "objective.gamma_beta_ratio")


# (score, link, whether the chosen answer's NLL is added) -> the method at alpha = 0, where power is the identity.
_AT_ZERO = {
    ("mean", "logistic", False): "SimPO",
    ("ratio_sum", "logistic", False): "DPO",
    ("ratio_mean", "squared", False): "IPO",
    ("sum", "logistic", True): "CPO",
    ("odds", "logistic", True): "ORPO",
}


def at_zero(settings: Mapping[str, Any]) -> str | None:
    """The published method that an objective with a power shape equals at alpha = 0.

    Args:
        settings: dotted keys and values of a configuration.

    Returns:
        Its name ("SimPO", "DPO"), or None for another shape or a combination without a name.
    """
    if settings.get("objective.shape.name") != "power":
        return None
    if any(settings.get(f"objective.{kind}.name", name) != name for kind, name in OPTIONAL.items()):
        return None
    score, link = (settings.get(f"objective.{kind}.name") for kind in ("score", "link"))
    return _AT_ZERO.get((str(score), str(link), bool(settings.get("objective.nll"))))


def resolve_gamma(cfg: DictConfig, choices: Mapping[str, str], sources: Sources) -> None:
    """Keep one of gamma and gamma_beta_ratio where the YAML files set both.

    That of an experiment overrides its objective's, and that of an objective its base objective's.

    Raises:
        ConfigError: one file sets both gamma and gamma_beta_ratio.
    """
    if "objective" not in cfg or any(OmegaConf.select(cfg, key) is None for key in GAMMAS):
        return
    setting = _gammas_in("experiment", choices.get("experiment", ""), sources)
    setting = setting or _gammas_in("objective", choices["objective"], sources)
    if setting is None or len(setting[1]) != 1:
        where = setting[0] if setting else f"objective={choices['objective']}"
        raise ConfigError(f"{where}: gamma and gamma_beta_ratio are both set; give one (gamma = beta x ratio)")
    OmegaConf.update(cfg, GAMMAS[1 - GAMMAS.index(setting[1][0])], None)


def _gammas_in(group: str, name: str, sources: Sources) -> tuple[Path, list[str]] | None:
    """The file that sets a gamma (that of `name`, else of its bases in turn), and the keys of GAMMAS that it sets."""
    file = sources.file(group, name)
    if file is None:
        return None
    content = _plain(file)
    keys = [k for k in GAMMAS if OmegaConf.select(content, k.removeprefix(f"{group}.")) is not None]
    if keys:
        return file, keys
    bases = [b for b in content.get("defaults", []) if isinstance(b, str) and b != "_self_"]
    return next((found for base in reversed(bases) if (found := _gammas_in(group, base, sources))), None)


def _plain(file: Path | None) -> DictConfig:
    """A file's content, from a cache: not to be changed."""
    if file is None:
        return OmegaConf.create()
    stat = file.stat()
    return _loaded(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)  # composing reads every part's file, and a sweep composes for every cell
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
    """The parameters that the YAML of every chosen part declares.

    Args:
        raw: the composed configuration, into which optional parts are filled.
        objective: the chosen objective, for messages.
        sources: the directories of YAML files.

    Returns:
        Dotted key of the part (objective.score, .shape, .link, ...) -> parameter -> default.

    Raises:
        ConfigError: the objective chooses no part of a required kind or one that does not exist, or sets a parameter
            that no part of the kind has.
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
                f"{suggestion(f'objective/{kind}', str(name), known)} (choices: {', '.join(known)})"
            )
        if name not in known:
            raise ConfigError(
                f"objective={objective}: its YAML chooses {f'no {kind}' if name is None else f'the {kind} {name!r}'}; add "
                f"'- {kind}: NAME' to its defaults (choices: {', '.join(known)})"
            )
        # Parameters of the former part remain when a part is switched; one that no part has is a mistake.
        anywhere = sorted({str(k) for part in known.values() for k in part if k != "name"})
        for key in chosen or ():
            if key != "name" and key not in anywhere:
                raise ConfigError(
                    f"objective={objective}: unknown key 'objective.{kind}.{key}' in its YAML{nearest(str(key), anywhere)}"
                )
        declared[f"objective.{kind}"] = {str(k): v for k, v in known[str(name)].items()}
        if kind in OPTIONAL:  # Hydra has not composed them, because no defaults list names them
            whole = {**declared[f"objective.{kind}"], **(chosen or {})}
            OmegaConf.update(raw, f"objective.{kind}", whole, merge=False, force_add=True)
    return declared


def parts_with(parameter: str, kind: str | None, sources: Sources) -> list[str]:
    """Find the parts that have a parameter.

    Args:
        parameter: its name.
        kind: dotted key of the kind (objective.shape) to search; None for all kinds.
        sources: the directories of YAML files.

    Returns:
        The parts as they are chosen, one text a kind: ["objective/shape=power"], with `|` between several choices.
    """
    groups = [f"objective/{name}" for name in PARTS] if kind is None else [kind.replace(".", "/")]
    found = {
        group: [name for name in sources.groups().get(group, ()) if parameter in _plain(sources.file(group, name))]
        for group in groups
        if parameter != "name"
    }
    return [f"{group}={'|'.join(names)}" for group, names in found.items() if names]


def pop_optional(groups: dict[str, str]) -> dict[str, str]:
    """Remove the choices of optional parts from `groups`, which Hydra cannot compose: no defaults list names them.

    Args:
        groups: group -> "group=choice"; changed in place.

    Returns:
        Kind -> name of the chosen part.
    """
    chosen = {}
    for kind in OPTIONAL:
        choice = groups.pop(f"objective/{kind}", None)
        if choice is not None:
            chosen[kind] = choice.partition("=")[2]
    return chosen


def choose_optional(raw: DictConfig, chosen: Mapping[str, str]) -> None:
    """Set the optional parts of a composed configuration; parameters of a part that is replaced are dropped."""
    for kind, name in chosen.items():
        key = f"objective.{kind}"
        if "objective" in raw and OmegaConf.select(raw, f"{key}.name") != name:
            OmegaConf.update(raw, key, {"name": name}, merge=False, force_add=True)


def check_parts(cfg: DictConfig, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Convert the parts' parameters to the types of their defaults, and drop those of a part that was replaced."""
    for path, declared in parts.items():
        chosen = OmegaConf.select(cfg, path)
        settings = dict(declared)
        for key, value in (chosen or {}).items():
            if key not in declared:
                continue  # objective/shape=identity under an objective whose YAML sets shape.alpha
            settings[key] = _to_type_of(declared[key], value, f"{path}.{key}")
        OmegaConf.update(cfg, path, settings, merge=False)


def _to_type_of(default: Any, value: Any, key: str) -> Any:
    """`value` as the type of `default`; raises ConfigError where it is of another type."""
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

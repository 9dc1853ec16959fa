"""From conf/ and a command line to one typed, checked configuration.

Hydra composes the choice of groups (and nothing else); values from the command line are then merged here, one by one,
into the typed schema. That is stricter than hydra.compose, which lets `+typo=3` and `hydra.run.dir=x` pass, gives each
error its key and its nearest valid name, and lets a sweep compose once per choice of groups.
"""

from __future__ import annotations

import copy
import difflib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from alphapo_cli.errors import ConfigError, nearest
from alphapo_cli.ranges import check, normalise

T = TypeVar("T")
PARTS = ("score", "shape", "link")
# What a key of the schema takes, in words.
_KINDS: dict[type, str] = {
    BooleanNode: "true or false",
    IntegerNode: "a whole number",
    FloatNode: "a number",
    StringNode: "a text",
    ListConfig: "a list such as [a,b]",
}
GAMMAS = ("objective.gamma", "objective.gamma_beta_ratio")


def shipped(name: str) -> Path:
    """The directory conf/ or sweeps/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


@dataclass(frozen=True)
class Sources:
    """Where YAML is looked for: the shipped conf/ and, before it, the user's `--config-dir`."""

    user: Path | None = None

    @property
    def roots(self) -> list[Path]:
        return [*([self.user] if self.user else []), shipped("conf")]

    def groups(self) -> dict[str, list[str]]:
        """Every group and its choices, e.g. {"objective/shape": ["identity", "power"]}."""
        found: dict[str, set[str]] = {}
        for root in self.roots:
            for file in root.rglob("*.yaml"):
                group = file.parent.relative_to(root).as_posix()
                if group != ".":
                    found.setdefault(group, set()).add(file.stem)
        return {group: sorted(names) for group, names in sorted(found.items())}

    def file(self, group: str, name: str) -> Path | None:
        return next((p for root in self.roots if (p := root / group / f"{name}.yaml").is_file()), None)


@dataclass(frozen=True)
class Line:
    """One layer of overrides (a sweep's base, the command line, a cell), parsed and split in groups and values."""

    groups: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def parse(texts: Iterable[str]) -> list[Override]:
    """Hydra's own grammar, with what compose() would swallow refused.

    Raises:
        ConfigError: a text that is not an override, `hydra.*`, or a deletion.
    """
    parsed = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].strip().rstrip(".")
            raise ConfigError(f"'{text}' is not an override (write key=value): {reason}") from error
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"'{text}': hydra.* settings have no effect here; a run's directory is run.dir and run.name"
            )
        if override.is_delete():
            raise ConfigError(f"'{text}': keys cannot be deleted; set {key.lstrip('~')}=null")
        if override.package is not None:
            raise ConfigError(f"'{text}': packages (@) are not supported on the command line")
        parsed.append(override)
    return parsed


def split(overrides: Sequence[Override], sources: Sources) -> Line:
    """Separate choices of groups from values; the choice must exist.

    Raises:
        ConfigError: an unknown choice, or a sweep (comma list or range) outside `alphapo sweep`.
    """
    groups, values = [], {}
    known = sources.groups()
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override():
            raise ConfigError(f"'{text}' lists several values: use alphapo sweep {text}")
        if key in known:
            choice = override.value()
            if choice not in known[key] and not (choice is None and key == "experiment"):
                raise ConfigError(
                    f"{key}={_shown(choice)}: no such {key}{nearest(str(choice), known[key])} (choices: {', '.join(known[key])})"
                )
            groups.append(f"{key}={'null' if choice is None else choice}")
        elif "/" in key:
            raise ConfigError(f"'{text}': no such group '{key}'{nearest(key, known)} (groups: {', '.join(known)})")
        else:
            values[key] = override.value()
    return Line(tuple(groups), values)


def read_line(texts: Iterable[str], sources: Sources) -> Line:
    """`parse` and `split`."""
    return split(parse(texts), sources)


@functools.lru_cache(maxsize=256)
def _compose_groups(primary: str, groups: tuple[str, ...], user: Path | None) -> tuple[DictConfig, dict[str, str]]:
    """The composed configuration, and the choice made in every group."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(shipped("conf").resolve())):
            if user is not None:
                # hydra.searchpath comes after the main folder; a user's files are to win over shipped ones.
                loader: Any = GlobalHydra.instance().config_loader()
                search = loader.get_search_path()
                search.prepend("user", f"file://{user}", SearchPathQuery(provider="main"))
                loader.repository.initialize_sources(search)
            cfg = hydra_compose(config_name=primary, overrides=list(groups), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{primary}: {str(cause).splitlines()[0]}") from error
    except YAMLError as error:
        raise ConfigError(f"{primary} with {' '.join(groups)}: {' '.join(str(error).split())}") from error
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def compose(primary: str, schema: type[T], layers: Sequence[Line], sources: Sources) -> T:
    """The configuration of `primary` (a file of conf/) under `layers`, later ones winning.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; all faults of a kind in one line.
    """
    groups: dict[str, str] = {}
    for layer in layers:
        for choice in layer.groups:
            groups[choice.partition("=")[0]] = choice
    composed, choices = _compose_groups(primary, tuple(groups.values()), sources.user)
    raw = copy.deepcopy(composed)
    parts = _part_defaults(raw, choices.get("objective", ""), sources)
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(schema), raw)
    except OmegaConfBaseException as error:
        raise ConfigError(f"conf/{primary}.yaml with {' '.join(groups.values())}: {_reason(error)}") from error
    assert isinstance(cfg, DictConfig)
    _settle_gamma(cfg, choices, sources)
    for layer in layers:
        _apply(cfg, layer.values, parts)
    _check_parts(cfg, parts)
    try:
        typed = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(_reason(error)) from error
    typed = normalise(typed)
    check(typed)
    return typed  # type: ignore[no-any-return]


def _expected(cfg: DictConfig, key: str) -> str | None:
    """What the schema takes at `key`, in words."""
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(cfg, parent) if parent else cfg
    node = holder._get_node(name) if isinstance(holder, DictConfig) else None
    words = next((words for kind, words in _KINDS.items() if isinstance(node, kind)), None)
    if node is None or words is None:
        return None
    return f"must be {words}{' or null' if node._is_optional() else ''}"


def _reason(error: Exception) -> str:
    """OmegaConf's first line, without its multi-line context."""
    return str(error).strip().splitlines()[0]


def _apply(cfg: DictConfig, values: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    given = [key for key in GAMMAS if values.get(key) is not None]
    if len(given) == 2:
        raise ConfigError(f"{given[0]} and {given[1]} are both given: give one (gamma = beta x ratio)")
    for key in given:
        other = GAMMAS[1 - GAMMAS.index(key)]
        OmegaConf.update(cfg, other, None)
    for key, value in values.items():
        _require(cfg, key, value, parts)
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={_shown(value)}: {_expected(cfg, key) or _reason(error)}") from error


def _require(cfg: DictConfig, key: str, value: Any, parts: Mapping[str, Mapping[str, Any]]) -> None:
    node: Any = cfg
    path: list[str] = []
    for name in key.split("."):
        here = ".".join(path)
        children = [str(k) for k in node] if isinstance(node, DictConfig) else []
        if here in parts:  # a part's own parameters, whose names its YAML declares
            children = [k for k in parts[here] if k != "name"]
        if name not in children:
            full = ".".join([*path, name])
            if here in parts and not children:
                kind, chosen = here.rpartition(".")[2], parts[here]["name"]
                raise ConfigError(
                    f"unknown key '{full}': the {kind} '{chosen}' has no parameters; choose another by objective/{kind}="
                )
            hint = nearest(name, children).replace("mean '", f"mean '{here}.") if here else _nearest_anywhere(cfg, key)
            where = f"keys of {here}" if here else "keys"
            listed = f" ({where}: {', '.join(children)})" if children else f" ({here} holds a value, not keys)"
            raise ConfigError(f"unknown key '{full}'{hint}{listed}")
        node = node[name] if isinstance(node, DictConfig) else None
        path.append(name)
    if isinstance(node, DictConfig) and not isinstance(value, Mapping):
        raise ConfigError(f"{key}={_shown(value)}: {key} is a group of keys ({', '.join(map(str, node))}), not a value")


def _nearest_anywhere(cfg: DictConfig, key: str) -> str:
    """A key of that, or nearly that, last name elsewhere: `objective.beta` for `beta`."""
    known: dict[str, str] = {}
    for k in leaves(cfg):
        known.setdefault(k.rsplit(".", 1)[-1], k)
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1, cutoff=0.7)
    return f"; did you mean '{known[close[0]]}'?" if close else nearest(key, leaves(cfg))


def leaves(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found: dict[str, Any] = {}
    for key in cfg:
        value = cfg[key]
        name = f"{prefix}{key}"
        if isinstance(value, (DictConfig, Mapping)):
            found.update(leaves(value, f"{name}."))
        else:
            found[name] = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _settle_gamma(cfg: DictConfig, choices: Mapping[str, str], sources: Sources) -> None:
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
    loaded = OmegaConf.load(file) if file is not None else None
    return loaded if isinstance(loaded, DictConfig) else OmegaConf.create()


def _part_defaults(raw: DictConfig, objective: str, sources: Sources) -> dict[str, dict[str, Any]]:
    """For objective.score, .shape and .link: the keys and defaults that the chosen part's YAML declares.

    Raises:
        ConfigError: the objective chooses no part of a kind, one that is not there, or sets what no part has.
    """
    declared: dict[str, dict[str, Any]] = {}
    for kind in PARTS if "objective" in raw else ():
        chosen = OmegaConf.select(raw, f"objective.{kind}") if isinstance(raw.objective, DictConfig) else None
        known = {
            name: _plain(sources.file(f"objective/{kind}", name)) for name in sources.groups()[f"objective/{kind}"]
        }
        name = chosen.get("name") if isinstance(chosen, DictConfig) else None
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
    return declared


def _check_parts(cfg: DictConfig, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """A part's parameters have the type of the default in its YAML; settings left from another part are dropped."""
    for path, declared in parts.items():
        chosen = OmegaConf.select(cfg, path)
        settings = dict(declared)
        for key, value in leaves(chosen).items():
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
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:
        good = True
    if not good:
        kind = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}[type(default)]
        raise ConfigError(f"{key}={_shown(value)}: must be {kind}")
    return value


def to_yaml(cfg: Any) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def to_dict(cfg: Any) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    plain = OmegaConf.to_container(OmegaConf.structured(cfg))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def cache_dir() -> Path:
    """$ALPHAPO_CACHE, else $XDG_CACHE_HOME/alphapo, else ~/.cache/alphapo. Not created."""
    own = os.environ.get("ALPHAPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(base).expanduser() / "alphapo" if base else Path.home() / ".cache" / "alphapo"

"""Dotted keys of a configuration, and what an unknown one may have been meant to be."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from alphapo_cli.config.key_types import FREE
from alphapo_cli.config.objective_parts import parts_with
from alphapo_cli.config.overrides import Sources, shown
from alphapo_cli.config.renamed import ELSEWHERE
from alphapo_cli.errors import ConfigError

MOST = 4  # keys that a hint names; a last name that more keys have says nothing
_LIKE, _ALIKE = 0.5, 0.7  # least similarity of a name beside the typed one, and of a name elsewhere


def leaves(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a nested configuration."""
    found: dict[str, Any] = {}
    for key in cfg:
        value = None if isinstance(cfg, DictConfig) and OmegaConf.is_missing(cfg, key) else cfg[key]
        name = f"{prefix}{key}"
        if isinstance(value, (DictConfig, Mapping)):
            found.update(leaves(value, f"{name}."))
        else:
            found[name] = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    return found


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys with different values, in alphabetical order; a key that one of the two has not is null there."""
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


class UnknownKeyError(ConfigError):
    """An override of a key that the configuration does not have.

    Args:
        key: the key as typed.
        at: its first part that does not exist.
        known: the keys that exist; groups of keys too, those of config groups with slashes.
        listed: the end of the message, such as the keys beside it.
    """

    def __init__(self, key: str, at: str, known: Iterable[str], listed: str = "") -> None:
        self.key, self.at, self.listed = key, at, listed
        self.known = tuple(dict.fromkeys(known))
        super().__init__(f"unknown key '{at}'{suggestion(key, at, self.known)}{listed}")

    def among(self, more: Iterable[str], typed: Callable[[str], str] = str) -> UnknownKeyError:
        """The same error where the command line has other keys too.

        Args:
            more: keys of other stages, as they are typed.
            typed: turns a text with a key of this stage into what is typed.

        Returns:
            The error, with a hint among all keys.
        """
        return UnknownKeyError(typed(self.key), typed(self.at), (*map(typed, self.known), *more), typed(self.listed))


def require(cfg: DictConfig, key: str, value: Any, parts: Mapping[str, Mapping[str, Any]], sources: Sources) -> None:
    """Check that an override sets a key of the configuration.

    Args:
        cfg: the configuration.
        key: the dotted key.
        value: its value, for the message.
        parts: dotted key of an objective's part -> the parameters that its YAML declares.
        sources: the directories of YAML files.

    Raises:
        UnknownKeyError: there is no such key.
        ConfigError: `key` is a group of keys, and `value` is none.
    """
    node: Any = cfg
    path: list[str] = []
    for name in key.split("."):
        base = ".".join(path)
        children = [str(k) for k in node] if isinstance(node, DictConfig) else []
        if base in parts:  # a part's own parameters, whose names its YAML declares
            children = [k for k in parts[base] if k != "name"]
        if base in FREE:
            return
        if name not in children:
            error = _unknown(cfg, key, base, children, parts, sources)
            raise error
        node = node[name] if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, name) else None
        path.append(name)
    if isinstance(node, DictConfig) and not isinstance(value, Mapping):
        group = key.replace(".", "/")
        fix = f"; one is chosen by {group}={shown(value)}" if value in sources.groups().get(group, ()) else ""
        listed = f" ({', '.join(map(str, node))})" if node else ""
        raise ConfigError(f"{key}={shown(value)}: {key} is a group of keys{listed}, not a value{fix}")


def _unknown(
    cfg: DictConfig, key: str, base: str, children: Sequence[str], parts: Mapping[str, Any], sources: Sources
) -> ConfigError:
    """The error for `key`, of which `base` exists and has `children`."""
    name = key.removeprefix(f"{base}.").partition(".")[0]
    full, group = f"{base}.{name}" if base else name, key.partition(".")[0]
    # A parameter of a part that is not chosen is no key, and yet what may be meant.
    kind = base if base in parts else None
    known = _known(cfg, parts, sources)
    inside = [k for k in known if _group(k) == "objective"]
    asked = group in ("objective", key) and not any(_last(k) == _last(key) for k in inside)
    elsewhere = parts_with(_last(key), kind, sources) if asked and "objective" in cfg else []
    note = f"; {_last(key)} is a parameter of {', '.join(elsewhere)}" if elsewhere else ""
    if kind is not None and not children:
        fix = note or f"; choose another by {kind.replace('.', '/')}="
        chosen = f"the {_last(kind)} '{parts[kind]['name']}'"
        return ConfigError(f"unknown key '{full}': {chosen} has no parameters{fix}")
    where = f"keys of {base}" if base else "keys"
    listed = f" ({where}: {', '.join(children)})" if children else f" ({base} holds a value, not keys)"
    return UnknownKeyError(key, full, inside if note and group == "objective" else known, note + listed)


def _known(cfg: DictConfig, parts: Mapping[str, Mapping[str, Any]], sources: Sources) -> list[str]:
    """Every key of a configuration, after the groups of keys; those of config groups are written with slashes."""
    keys = list(leaves(cfg))
    groups = sorted({".".join(path[:n]) for path in (key.split(".") for key in keys) for n in range(1, len(path))})
    groups += [group for group in FREE if group not in groups and group.partition(".")[0] in cfg]
    slashed = [key.replace(".", "/") for key in groups]
    known = [group if group in sources.groups() else key for key, group in zip(groups, slashed, strict=True)]
    # A part's name is set by choosing the part, and parameters of a part that was replaced are still in `cfg`.
    return known + [k for k in keys if _parent(k) not in parts or _last(k) in {*parts[_parent(k)]} - {"name"}]


def suggestion(key: str, at: str, known: Sequence[str]) -> str:
    """Hint at the keys that `key` may have been meant to be.

    A key elsewhere with the same last name comes before one beside it with a similar name: `objective.shape.alpha` for
    `objective.alpha`.

    Args:
        key: the key as typed.
        at: its first part that does not exist.
        known: the keys that exist.

    Returns:
        `; did you mean 'x'?`, or an empty text.
    """
    if (elsewhere := ELSEWHERE.get(_last(key))) is not None:
        return f"; here it is {elsewhere}"
    found = _of_the_same_name(key, known) or _of_a_similar_name(key, at, known)
    if not found:
        return ""
    *first, last = (f"'{k}'" for k in found)
    return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"


def _of_the_same_name(key: str, known: Sequence[str]) -> list[str]:
    """Keys called like `key`, with words before that (num_train_epochs for "epochs"), or by its initials ("lr")."""
    name, group = _last(key), f"{_group(key)}."
    exact = [k for k in known if _last(k) == name]
    longer = [k for k in known if _last(k).endswith(f"_{name}")]
    if "." in key:  # those of its own group, or else those that end like all of it (shape.alpha)
        tail = ".".join(key.rsplit(".", 2)[-2:])
        longer = [k for k in longer if k.startswith(group)]
        for fits in ([k.startswith(group) for k in exact], [k.endswith(f".{tail}") for k in exact]):
            exact = list(itertools.compress(exact, fits)) or exact
    found = [*exact, *longer] if len(exact) + len(longer) <= MOST else exact
    found = found or [k for k in known if name == "".join(word[0] for word in _last(k).split("_") if word)]
    return found if len(found) <= MOST else []


def _of_a_similar_name(key: str, at: str, known: Sequence[str]) -> list[str]:
    def best(wanted: str, among: Iterable[str], cutoff: float) -> tuple[float, str] | None:
        names = {_last(k): k for k in reversed(list(among))}
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)
        return (difflib.SequenceMatcher(None, close[0], wanted).ratio(), names[close[0]]) if close else None

    near = best(_last(at), (k for k in known if _parent(k) == _parent(at)), _LIKE)
    far = best(_last(key), known, _ALIKE)
    chosen = far if far is not None and (near is None or far[0] > near[0]) else near
    return [] if chosen is None else [chosen[1]]


def _group(key: str) -> str:
    return key.replace("/", ".").partition(".")[0]


def _last(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]


def _parent(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[0]

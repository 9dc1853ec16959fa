"""What a part of an objective is, and the three tables in which parts are found by name.

A part is a plain function plus what it needs. Its keyword-only parameters are its configuration: `bind` checks a
mapping (from conf/objective/<kind>/<name>.yaml and the command line) against the signature, so a new part is one
function and one YAML.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alphapo_cli.errors import ConfigError, nearest

# What a score is the logarithm of: a probability (at most 0), or a ratio of two probabilities (either sign).
ScoreKind = Literal["log_prob", "log_ratio"]


@dataclass(frozen=True)
class Part:
    """A named function of one kind (score, shape or link) and what it needs from the data."""

    kind: str
    name: str
    function: Callable[..., Any]
    needs_reference: bool = False
    needs_rejected: bool = True
    score_kind: ScoreKind = "log_prob"

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        signature = inspect.signature(self.function)
        return {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def bind(self, settings: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with its parameters filled in.

        Raises:
            ConfigError: a parameter that the function does not have.
        """
        chosen = {k: v for k, v in settings.items() if k != "name"}
        for key in chosen:
            if key not in self.parameters:
                raise ConfigError(
                    f"objective.{self.kind}.{key}: {self.kind} '{self.name}' has no such parameter"
                    f"{nearest(key, self.parameters)} (it has: {', '.join(self.parameters) or 'none'})"
                )
        return functools.partial(self.function, **chosen)


SCORES: dict[str, Part] = {}
SHAPES: dict[str, Part] = {}
LINKS: dict[str, Part] = {}
TABLES = {"score": SCORES, "shape": SHAPES, "link": LINKS}


def register(kind: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: enter a function into the table of its kind, under its own name."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.rstrip("_")
        TABLES[kind][name] = Part(kind, name, function, **facts)
        return function

    return enter


def find(kind: str, settings: Mapping[str, Any]) -> Part:
    """The part that `settings["name"]` names.

    Raises:
        ConfigError: no name, or a name that no function has.
    """
    table = TABLES[kind]
    name = str(settings.get("name"))
    if name not in table:
        raise ConfigError(
            f"objective.{kind}.name={name}: no such {kind}{nearest(name, table)} (there are: {', '.join(sorted(table))})"
        )
    return table[name]

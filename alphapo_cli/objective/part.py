"""What a part of an objective is, and the tables in which parts are found by name.

A part is a plain function plus what it needs. Its keyword-only parameters are its configuration: `bind` checks a
mapping (from conf/objective/<kind>/<name>.yaml and the command line) against the signature, so a new part is one
function and one YAML.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from alphapo_cli.config import validate
from alphapo_cli.config.objective_parts import OPTIONAL, PARTS
from alphapo_cli.errors import ConfigError, nearest
from alphapo_cli.objective.inputs import PartState

# What a score is the logarithm of: a probability (at most 0), or a ratio of two probabilities (either sign).
ScoreKind = Literal["log_prob", "log_ratio"]


@dataclass(frozen=True)
class StatefulPart:
    """What a part remembers of earlier optimizer steps. Every function also takes the part's settings as keywords.

    initial() -> name -> number before the first step.
    observe(c) -> [B, F] values of each pair, without gradient.
    update(state, values [n, F]) -> the state with which the step of those n pairs is computed, and the next begins.
    on_probe(state, row) -> the state after a measurement of the probe, `row` its metrics.
    """

    initial: Callable[..., dict[str, float | Tensor]]
    observe: Callable[..., Tensor] | None = None
    update: Callable[..., PartState] | None = None
    on_probe: Callable[..., PartState] | None = None


@dataclass(frozen=True)
class Part:
    """A named function of one kind and what it needs from the data.

    `needs_statistics`: facts of the whole next-token distribution. `needs_kl`: the reference's whole distribution at
    every position, so that it is run at every step. `needs_guide`: a third model's token log-probs (`model.guide`). `columns`: names of per-pair numbers that it reads, or
    a function from its settings to them. `rule`: what these numbers must be; (columns, **settings) -> (which pairs break it [B], what they must be in words). `limits`: parameter ->
    its range, as in `schema`. `reads_margin`: whether gamma and a margin part mean anything to this link.

    `sides`: it is shown the first so many answers of a row; None: all there are, as a score always is, and of a column
    <name>_chosen that it reads also <name>_2, <name>_3 and so on. `pointwise`: each answer counts by itself, so that a
    row may have one alone.
    `mismatched`: in training its third answer is one to another prompt (`TokenPairs.with_mismatched`).
    """

    kind: str
    name: str
    function: Callable[..., Any]
    needs_reference: bool = False
    needs_rejected: bool = True
    score_kind: ScoreKind = "log_prob"
    needs_statistics: bool = False
    needs_kl: bool = False
    needs_guide: bool = False
    columns: tuple[str, ...] | Callable[..., tuple[str, ...]] = ()
    rule: Callable[..., Any] | None = None
    stateful: StatefulPart | None = None
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reads_margin: bool = True
    sides: int | None = 2
    pointwise: bool = False
    mismatched: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        signature = inspect.signature(self.function)
        return {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def bind(self, settings: Mapping[str, Any]) -> BoundPart:
        """The part with its parameters filled in.

        Raises:
            ConfigError: a parameter that the function does not have, or a value outside its limits.
        """
        chosen = {n: p.default for n, p in self.parameters.items()}
        for key, value in settings.items():
            if key == "name":
                continue
            if key not in self.parameters:
                raise ConfigError(
                    f"objective.{self.kind}.{key}: {self.kind} '{self.name}' has no such parameter"
                    f"{nearest(key, self.parameters)} (it has: {', '.join(self.parameters) or 'none'})"
                )
            chosen[key] = value
        for name, limits in self.limits.items():
            for words in validate.fault(f"objective.{self.kind}.{name}", chosen[name], limits):
                raise ConfigError(words)
        return BoundPart(self, chosen)


@dataclass(frozen=True)
class BoundPart:
    """A part with its settings."""

    part: Part
    settings: Mapping[str, Any]

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        return functools.partial(self.part.function, **self.settings)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    @property
    def columns(self) -> tuple[str, ...]:
        wanted = self.part.columns
        return wanted(**self.settings) if callable(wanted) else wanted

    @property
    def words(self) -> str:
        return f"{self.part.kind} '{self.part.name}'"


TABLES: dict[str, dict[str, Part]] = {kind: {} for kind in PARTS}


def register(kind: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: enter a function into the table of its kind, under its own name."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.rstrip("_")
        TABLES[kind][name] = Part(kind, name, function, **facts)
        return function

    return enter


def find(kind: str, settings: Mapping[str, Any]) -> Part:
    """The part that `settings["name"]` names; of a kind that may be left out, the one that does nothing.

    Raises:
        ConfigError: no name, or a name that no function has.
    """
    table = TABLES[kind]
    name = str(settings.get("name", OPTIONAL.get(kind)))
    if name not in table:
        raise ConfigError(
            f"objective.{kind}.name={name}: no such {kind}{nearest(name, table)} (there are: {', '.join(sorted(table))})"
        )
    return table[name]

"""Parts of objectives, and the tables in which they are found by name.

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
from alphapo_cli.config.renamed import suggestion
from alphapo_cli.errors import ConfigError, nearest
from alphapo_cli.objective.inputs import PartState

# What a score is the logarithm of: a probability (at most 0), or a ratio of two probabilities (either sign).
ScoreKind = Literal["log_prob", "log_ratio"]


@dataclass(frozen=True)
class StatefulPart:
    """The state of a part across optimizer steps, as functions that also take the part's settings as keywords.

    Attributes:
        initial: () -> name -> number before the first step.
        observe: (inputs) -> [B, F] values of each pair, without gradient.
        update: (state, values [n, F]) -> the state for the loss of the step of those n pairs, and before the next step.
        on_probe: (state, row) -> the state after a measurement of the probe, `row` its metrics.
    """

    initial: Callable[..., dict[str, float | Tensor]]
    observe: Callable[..., Tensor] | None = None
    update: Callable[..., PartState] | None = None
    on_probe: Callable[..., PartState] | None = None


@dataclass(frozen=True)
class Part:
    """A named function of one kind and what it needs from the data.

    Attributes:
        kind: one of `PARTS`.
        name: value of `objective/<kind>`.
        function: the part itself; its keyword-only parameters are settings.
        needs_reference: whether it reads reference log-probs.
        needs_rejected: whether it reads the rejected answer.
        score_kind: what a score is the logarithm of.
        needs_statistics: whether it reads statistics of the whole next-token distribution.
        needs_kl: whether it reads KL(reference || policy), for which the reference is run at every step.
        needs_guide: whether it reads token log-probs of a third model (`model.guide`).
        columns: names of the per-pair numbers that it reads, or a function from its settings to them.
        rule: (columns, **settings) -> ([B] pairs that break the rule, what the columns must be, for messages).
        stateful: its state, if it has one.
        limits: parameter -> its range, as in `schema`.
        reads_margin: whether gamma and a margin part have a meaning for this link.
        sides: leading answers of a row that it reads. None: all, as a score always does, and of a column
            <name>_chosen that it reads also <name>_2, <name>_3 and so on.
        pointwise: whether each answer is a term of its own, so that a row may have a single answer.
        mismatched: whether its third answer in training is one to another prompt (`TokenPairs.with_mismatched`).
        divides: whether it divides by the sum of an answer's token weights.
        signed: whether the token weights that it gives may be 0 or below.
        seeded: whether it draws at random by the run's seed, which its functions take as the keyword `run_seed`.
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
    divides: bool = False
    signed: bool = False
    seeded: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its settings: the keyword-only parameters of the function but the run's seed, by name."""
        named = inspect.signature(self.function).parameters.items()
        return {n: p for n, p in named if p.kind is inspect.Parameter.KEYWORD_ONLY and n != "run_seed"}

    def bind(self, settings: Mapping[str, Any], run_seed: int = 0) -> BoundPart:
        """Return the part with its parameters filled in from `settings`, and defaults for the rest.

        Args:
            settings: parameter -> value; `name` is passed over.
            run_seed: the run's seed, for a part that draws at random.

        Returns:
            The bound part.

        Raises:
            ConfigError: the function does not have a parameter, or a value is outside its limits.
        """
        values = {n: p.default for n, p in self.parameters.items()}
        for key, value in settings.items():
            if key == "name":
                continue
            if key not in self.parameters:
                raise ConfigError(
                    f"objective.{self.kind}.{key}: {self.kind} '{self.name}' has no such parameter"
                    f"{nearest(key, self.parameters)} (it has: {', '.join(self.parameters) or 'none'})"
                )
            values[key] = value
        for name, limits in self.limits.items():
            for message in validate.fault(f"objective.{self.kind}.{name}", values[name], limits):
                raise ConfigError(message)
        return BoundPart(self, values, run_seed)


@dataclass(frozen=True)
class BoundPart:
    """A part with its settings, and the seed of the run that it draws by."""

    part: Part
    settings: Mapping[str, Any]
    run_seed: int = 0

    @property
    def keywords(self) -> dict[str, Any]:
        """What its functions take as keywords: its settings, and the run's seed if it is `seeded`."""
        return {**self.settings, "run_seed": self.run_seed} if self.part.seeded else dict(self.settings)

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The part's function with its keywords filled in."""
        return functools.partial(self.part.function, **self.keywords)

    def with_setting(self, parameter: str, value: Any) -> BoundPart:
        """The same with another value of a parameter, checked as in `Part.bind`."""
        return self.part.bind({**self.settings, parameter: value}, self.run_seed)

    def __call__(self, *args: Any) -> Any:
        """Evaluate the part."""
        return self.function(*args)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the per-pair numbers that it reads under its settings."""
        names = self.part.columns
        return names(**self.settings) if callable(names) else names

    @property
    def description(self) -> str:
        """Kind and name, for messages."""
        return f"{self.part.kind} '{self.part.name}'"


TABLES: dict[str, dict[str, Part]] = {kind: {} for kind in PARTS}


def register(kind: str, **fields: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function in the table of its kind, under its own name; `fields` as in `Part`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.rstrip("_")
        TABLES[kind][name] = Part(kind, name, function, **fields)
        return function

    return decorate


def find(kind: str, settings: Mapping[str, Any]) -> Part:
    """Return the part that `settings["name"]` names; without a name, the default of an optional kind.

    Raises:
        ConfigError: a required kind has no name, or no part of the kind has that name.
    """
    table = TABLES[kind]
    name = str(settings.get("name", OPTIONAL.get(kind)))
    if name not in table:
        raise ConfigError(
            f"objective.{kind}.name={name}: no such {kind}{suggestion(f'objective/{kind}', name, table)} (there are: {', '.join(sorted(table))})"
        )
    return table[name]

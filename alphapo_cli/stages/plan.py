"""What a line of `run` or `sweep` asks for after training: the lines of generate and eval, checked and hashed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Line, Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.judges.registry import check_judge, check_settings
from alphapo_cli.evaluation.schema import EvalConfig
from alphapo_cli.generation.schema import GenerateConfig, check_line
from alphapo_cli.storage.hashing import plan_key

GENERATE = ("generation", "prompts")


EVALUATE = ("judge", "statistics")


@dataclass(frozen=True)
class Plan:
    """What is done with a trained run. Lines are composed per run, because a run brings settings of its own."""

    generate: Line
    evaluate: Line
    sources: Sources
    reference: Path | None = None  # None: answers of the model that training started from
    annotations: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None

    def check(self, cfg: TrainConfig) -> None:
        """Find out before training what the later stages would refuse.

        Raises:
            UsageError: no reference can be made, a file is missing, or a setting does not fit.
        """
        check_line(self.generate)
        check_settings(self.settings()[1].judge, self.annotations)
        if self.reference is None and cfg.model.path is None and cfg.model.source == "from_scratch":
            raise UsageError(
                "a model from random weights has no answers to be compared with: give --reference REF.json"
            )
        for flag in ("reference", "annotations", "difficulty", "gamed"):
            path = getattr(self, flag)
            if path is not None and not path.exists():
                raise UsageError(f"--{flag} {path}: no such file")

    def settings(self) -> tuple[GenerateConfig, EvalConfig]:
        """Of the later stages, without what a run brings along."""
        generate = compose("generate", GenerateConfig, [self.generate], self.sources)
        return generate, compose("eval", EvalConfig, [self.evaluate], self.sources)

    def to_yaml(self) -> str:
        """The resolved settings of the later stages under the names that a command line has for them."""
        generate, evaluate = self.settings()
        parts = {"generation": generate.generation, "prompts": generate.data}
        parts |= {"judge": evaluate.judge, "statistics": evaluate.statistics}
        return str(
            OmegaConf.to_yaml(OmegaConf.create({name: OmegaConf.structured(part) for name, part in parts.items()}))
        )

    def check_inputs(self) -> None:
        """Before training: read what the later stages read, and see whether the judge is there.

        Raises:
            UsageError: a file does not fit, the reference lacks prompts, or the judge lacks something.
        """
        from alphapo_cli.evaluation import length_controlled
        from alphapo_cli.evaluation.formats import read_outputs, short
        from alphapo_cli.generation.prompts import load_prompts
        from alphapo_cli.stages.generate import choose_backend

        generate, evaluate = self.settings()
        check_judge(evaluate.judge, self.annotations)
        choose_backend(generate.generation.backend)
        prompts = load_prompts(generate.data)
        if self.gamed is not None:
            length_controlled.read_gamed(self.gamed)
        if self.reference is None:
            return
        reference = read_outputs(self.reference)
        known = reference.by_instruction()
        missing = [prompt.instruction for prompt in prompts.rows if prompt.instruction not in known]
        if missing:
            raise UsageError(
                f"--reference {self.reference}: has no answer to {len(missing)} of {len(prompts.rows)} prompts, first "
                f"{short(missing[0])}; take a reference to the same prompts (prompts=..., prompts.path=FILE)"
            )
        if self.difficulty is not None:
            length_controlled.read_difficulty(self.difficulty, reference)

    @property
    def lines(self) -> list[Any]:
        """[groups, values] of generation and of evaluation, as JSON has them."""
        return [[list(line.groups), dict(line.values)] for line in (self.generate, self.evaluate)]

    @cached_property
    def key(self) -> str:
        """Changes with anything that the outcome depends on, apart from the run itself."""
        return plan_key(self.lines, (self.reference, self.annotations, self.difficulty, self.gamed))


def split_line(texts: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(training's, generation's, evaluation's) part of a command line.

    `prompts=NAME` and `prompts.KEY=...` are generation's `data=NAME` and `data.KEY=...`: `data` itself is what trains.
    """
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for text in texts:
        head = text.partition("=")[0].partition(".")[0]
        if head == "prompts":
            parts[1].append(text.replace("prompts", "data", 1))
        else:
            parts[1 if head in GENERATE else 2 if head in EVALUATE else 0].append(text)
    return parts


def differing_lines(old: list[Any], new: list[Any]) -> list[str]:
    """What two plans' `lines` say differently, as typed."""

    def flat(lines: list[Any]) -> dict[str, Any]:
        chosen = {name: choice for groups, _ in lines for name, _, choice in (g.partition("=") for g in groups)}
        values = {key: value for _, values in lines for key, value in values.items()}
        return {re.sub(r"^data\b", "prompts", key): value for key, value in (chosen | values).items()}

    was, now = flat(old), flat(new)
    return sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))


def make_plan(generate: list[str], evaluate: list[str], sources: Sources, **files: Path | None) -> Plan:
    """A plan from the command line's parts. Raises ConfigError as `read_line` does."""
    return Plan(read_line(generate, sources), read_line(evaluate, sources), sources, **files)

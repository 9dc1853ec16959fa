"""Train, generate, evaluate: what comes after training, and where its result is kept.

Every stage finds its own directory by what went in and leaves it alone when it is complete. The result joins the run
that it judges: outcome.json in the run directory, and the W&B run that holds the curves.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
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
from alphapo_cli.generation.run_settings import TAKEN_OVER, run_layer
from alphapo_cli.generation.schema import GenerateConfig, check_line
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OUTCOME
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.hashing import plan_key
from alphapo_cli.storage.jsonl import InUse

# What of results.json becomes a metric of the run, as eval/<name>; AlpacaEval counts rates in per cent.
RATES = ("win_rate", "length_controlled_winrate", "discrete_win_rate", "standard_error", "lc_standard_error")
FIGURES = (*RATES, "avg_length", "n_total", "true_win_rate", "true_reward")
GENERATE = ("generation", "prompts")
EVALUATE = ("judge", "statistics")
LOOK = 0.5  # seconds between two looks at answers that another process generates


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


def after_training(
    plan: Plan,
    cfg: TrainConfig,
    directory: RunDirectory,
    join: Callable[[dict[str, Any]], object],
    *,
    inside: bool = False,
) -> dict[str, Any]:
    """Generate and evaluate, unless this was done already. Returns the content of outcome.json.

    `join`: tells W&B what was found; outcome.json comes after it, because a run that has one is not taken up again.
    `inside`: the run's answers and their evaluation lie in the run directory, as for the cells of a sweep.

    Raises:
        UsageError: a stage's input does not fit.
        AlphapoError, Interrupted: a stage failed or was interrupted; the same line goes on.
    """
    from alphapo_cli.stages import evaluate

    done = directory.outcome()
    if done.get("key") == plan.key:
        return done
    keeper = directory.path if inside else None
    own = _generate(plan, str(directory.path), cfg, {}, keeper)
    reference = plan.reference or make_reference(plan, cfg)
    settings = compose("eval", EvalConfig, [plan.evaluate], plan.sources)
    settings.run.dir = cfg.run.dir
    inputs = evaluate.Inputs(own.outputs(), reference, plan.annotations, plan.difficulty, plan.gamed)
    evaluation = evaluate.prepare(settings, inputs, inside=keeper)
    results = evaluation.directory.load_results() if evaluation.state == "complete" else evaluate.run(evaluation)
    found = {
        "key": plan.key,
        "generate": str(own.path.resolve()),
        "eval": str(evaluation.directory.path.resolve()),
        "metrics": {
            f"eval/{name}": results[name] / (100 if name in RATES else 1)
            for name in FIGURES
            if results.get(name) is not None
        },
    }
    join(found)
    write_json(directory.path / OUTCOME, found)
    return found


def note_failure(plan: Plan, directory: RunDirectory, reason: str) -> None:
    """Record that what `plan` asks of a trained run could not be done."""
    write_json(directory.path / OUTCOME, {"key": None, "failed": plan.key, "reason": reason, "metrics": {}})


def make_reference(plan: Plan, cfg: TrainConfig) -> Path:
    """Answers of the model that training started from; made once for all runs that start there with the same seed.

    While another process makes them, this one waits.
    """
    said = False
    while True:
        try:
            # Other draws than the policy's own, so that an unchanged policy wins half of the time.
            path: Path = _generate(plan, cfg.model.path, cfg, {"seed": cfg.seed + 1}).outputs()
            return path
        except InUse as error:
            if not said:
                print(f"waiting for the reference answers: {error}", file=sys.stderr, flush=True)
            said = True
            time.sleep(LOOK)


def _generate(
    plan: Plan, model: str | None, cfg: TrainConfig, extra: dict[str, Any], inside: Path | None = None
) -> Any:
    """The directory of a model's answers, complete."""
    from alphapo_cli.stages import generate

    base = Line((), {"seed": cfg.seed, "run.dir": cfg.run.dir, **extra})
    # The answers of a run and those that it is compared with are drawn alike; a run that `model` names has its own way.
    alike = {key: OmegaConf.select(OmegaConf.structured(cfg), key) for key in (*TAKEN_OVER, "model.revision")}
    start = Line((), {key: value for key, value in alike.items() if value is not None})
    settings = compose("generate", GenerateConfig, [start, run_layer(model), base, plan.generate], plan.sources)
    generation = generate.prepare(settings, model, inside=inside)
    if generation.state != "complete":
        generate.run(generation)
    return generation.directory


def join_tracking(cfg: TrainConfig, directory: RunDirectory, found: dict[str, Any], group: Any = None) -> str | None:
    """Put the outcome into the W&B run that holds the curves; the command that uploads it, where there is one."""
    from alphapo_cli.stages.training.tracker import run_tracker

    summary = directory.summary() or {}
    tracker = run_tracker(cfg, directory, group)
    step = int(summary.get("step", 0))
    tracker.log(step, found["metrics"])
    for name, picture in (("curves", directory.path / "curves.png"), ("eval", Path(found["eval"]) / "winrate.png")):
        if picture.is_file() and cfg.tracking.pictures:
            tracker.picture(name, picture, step)
    tracker.finish({**summary.get("metrics", {}), **found["metrics"], "state": summary.get("state")}, 0)
    return tracker.sync_hint()

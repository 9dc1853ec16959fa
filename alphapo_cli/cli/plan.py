"""`alphapo plan`: what a training, a run or a sweep would take, before it starts."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    Overrides,
    StripThink,
    check_json_target,
    emit,
    next_step,
    sources,
    stripping,
)
from alphapo_cli.cli.run import Annotations, Difficulty, Gamed, MaxCost, Reference
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import parse_size

if TYPE_CHECKING:
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.estimate.training import Asked
    from alphapo_cli.stages.plan import Plan

Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="80GB",
        help="Of the GPU that is planned for (with trainer.use_cpu=true: the machine). Default: this one's.",
    ),
]
Measure = Annotated[bool, typer.Option("--measure", help="Time a few steps here, with random weights.")]
TokensPerSecond = Annotated[
    float | None, typer.Option("--tokens-per-second", min=0.001, help="Trained on by all processes, for the time.")
]
World = Annotated[int | None, typer.Option("--processes", min=1, help="Processes of torchrun. Default: as started.")]


@dataclass(frozen=True)
class Options:
    """The options that are a plan's own.

    Attributes:
        memory: bytes of the machine that is planned for; None: this one's.
        measure: whether a few steps are timed.
        tokens_per_second: tokens that all processes train on; None: not known.
        processes: of torchrun; None: as started.
    """

    memory: int | None
    measure: bool
    tokens_per_second: float | None
    processes: int | None

    @property
    def given(self) -> str:
        """Those that another plan of the same has again, as they are typed."""
        memory = "" if self.memory is None else f"--memory {self.memory / 1e9:g}GB"
        return f"{memory} --processes {self.processes}".strip() if self.processes is not None else memory

    @classmethod
    def read(cls, memory: str | None, measure: bool, tokens_per_second: float | None, processes: int | None) -> Options:
        """Read them, before anything that takes time is imported; raises UsageError."""
        if measure and tokens_per_second is not None:
            raise UsageError("--measure and --tokens-per-second both say how fast it is; give one of the two")
        size = None if memory is None else parse_size(memory, "--memory")
        return cls(size, measure, tokens_per_second, processes)


plan = typer.Typer(
    no_args_is_help=True,
    help="What train, run or sweep would take: steps, memory, disk, time, and what to change where it does not fit. "
    "Takes the same overrides, loads no weights and writes no run.",
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add `alphapo plan` to the application."""
    plan.command("train")(train)
    plan.command("run", short_help="What `alphapo run` would take, with the price of a judge.")(run)
    plan.command("sweep", short_help="What `alphapo sweep` would take: the whole grid.")(sweep)
    app.add_typer(plan, name="plan", short_help="What train, run or sweep would take: memory, disk, time.")


def train(
    overrides: Overrides = None,
    memory: Memory = None,
    measure: Measure = False,
    tokens_per_second: TokensPerSecond = None,
    processes: World = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    json: Json = None,
) -> None:
    """What `alphapo train` with these overrides would take.

    \b
    Examples:
      alphapo plan train model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz
      alphapo plan train experiment=alphapo_llama3_instruct --memory 80GB --tokens-per-second 9000
      alphapo plan train model.path=./my-model data=jsonl data.path=pairs.jsonl --measure
    """
    options = Options.read(memory, measure, tokens_per_second, processes)
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig

    where = sources(config_dir)
    cfg = compose_under(load(config), "train", TrainConfig, [read_line(overrides or [], where)], where)
    _one("train", cfg, None, options, json, _typed(overrides, config, config_dir))


def run(
    overrides: Overrides = None,
    memory: Memory = None,
    measure: Measure = False,
    tokens_per_second: TokensPerSecond = None,
    processes: World = None,
    reference: Reference = None,
    annotations: Annotations = None,
    difficulty: Difficulty = None,
    gamed: Gamed = None,
    strip_think: StripThink = False,
    max_cost: MaxCost = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    json: Json = None,
) -> None:
    """What `alphapo run` with these overrides would take; a judge that is paid by the token, too.

    \b
    Example:
      alphapo plan run model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz prompts=alpaca_eval prompts.path=alpaca_eval.json judge=openai --reference gpt4.json
    """
    from alphapo_cli.cli.run import checked_cost, composed

    options = Options.read(memory, measure, tokens_per_second, processes)
    files = {"reference": reference, "annotations": annotations, "difficulty": difficulty, "gamed": gamed}
    cfg, later = composed([*(overrides or []), *stripping(strip_think)], files, config, config_dir)
    later = replace(later, max_cost=checked_cost(max_cost))
    later.check(cfg)
    typed = _typed(overrides, config, config_dir, files, strip_think)
    cost = [] if max_cost is None else ["--max-cost", f"{max_cost:g}"]
    _one("run", cfg, later, options, json, shlex.join([*shlex.split(typed), *cost]))


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|FILE.yaml OVERRIDES", help="As for `alphapo sweep`: a list or range sweeps a key.",
            show_default=False,
        ),
    ] = None,
    memory: Memory = None,
    measure: Measure = False,
    tokens_per_second: TokensPerSecond = None,
    processes: World = None,
    reference: Reference = None,
    annotations: Annotations = None,
    difficulty: Difficulty = None,
    gamed: Gamed = None,
    strip_think: StripThink = False,
    max_parallel: Annotated[int | None, typer.Option("--max-parallel", min=1, help="Cells at a time at most.")] = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    json: Json = None,
) -> None:  # fmt: skip
    """What `alphapo sweep` with these arguments would take: the whole grid, and a smaller one to try first.

    \b
    Examples:
      alphapo plan sweep alpha
      alphapo plan sweep alpha model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz seed=0,1,2 --measure
    """
    options = Options.read(memory, measure, tokens_per_second, processes)
    from alphapo_cli.cli.sweep import composed
    from alphapo_cli.sweep.record import Typed

    files = {"reference": reference, "annotations": annotations, "difficulty": difficulty, "gamed": gamed}
    texts = [*(arguments or []), *stripping(strip_think)]
    line = composed(Typed(tuple(texts), config_dir, files, config), max_parallel)
    if line.plan is not None:
        line.plan.check(line.grid.cells[0].cfg)
    check_json_target(json)
    _check([cell.cfg for cell in line.grid.cells], line.plan)
    asked, _ = _asked(options)
    from alphapo_cli.cli.planning import following, show_grid
    from alphapo_cli.launch.estimate import estimate_grid

    found = estimate_grid(line.grid, line.launcher, processes, asked)
    cost = _judging(line.plan, line.grid.cells[0].cfg)
    show_grid(found, cost)
    total = None if cost is None else {**cost, "usd": None if cost["usd"] is None else cost["usd"] * found.cells}
    emit({**found.as_json(), "judge": total}, json)
    cells = [] if max_parallel is None else ["--max-parallel", str(max_parallel)]
    typed = _typed([*(arguments or []), *cells], config, config_dir, files, strip_think)
    next_step(*following(f"sweep {typed}".rstrip(), found.kinds[0][1], options.given))


def _typed(
    texts: Sequence[str] | None, config: Path | None, config_dir: Path | None,
    files: Mapping[str, Path | None] | None = None, strip_think: bool = False,
) -> str:  # fmt: skip
    """What was typed, for the line that does what was planned."""
    named = {"config": config, "config-dir": config_dir, **(files or {})}
    options = [word for name, path in named.items() if path is not None for word in (f"--{name}", str(path))]
    return shlex.join([*(texts or []), *options, *(["--strip-think"] if strip_think else [])])


def _asked(options: Options) -> tuple[Asked, int]:
    """What is asked for, and the number of processes."""
    if sys.stderr.isatty():
        say("reading data, and making the model without weights ...", file=sys.stderr, flush=True)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.estimate.training import Asked

    started = os.environ.get("WORLD_SIZE", "").strip()
    world = options.processes or (int(started) if started.isdigit() and int(started) else 1)
    return Asked(options.memory, options.tokens_per_second, options.measure), world


def _check(configs: Sequence[TrainConfig], later: Plan | None) -> None:
    """Refuse what the command would refuse before it loads a model."""
    from alphapo_cli.stages.best_metric import greater_is_better
    from alphapo_cli.stages.paths import check_paths
    from alphapo_cli.tracking.wandb_preflight import check_tracking

    for cfg in configs:
        check_paths(cfg, weightless=True)
        greater_is_better(cfg)
        check_tracking(cfg.tracking)
    if later is not None:
        later.check_files()
        later.check_inputs(configs[0])


def _one(
    command: str,
    cfg: TrainConfig,
    later: Plan | None,
    options: Options,
    json: str | None,
    typed: str,
) -> None:
    """Plan one training and show it."""
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.runs.identity import find_run

    check_json_target(json)
    state = RunDirectory(find_run(cfg, sys.argv)).check(cfg, replace=False)
    _check([cfg], later)
    asked, world = _asked(options)
    from alphapo_cli.cli.planning import following, show
    from alphapo_cli.stages.estimate.case import prepare_case
    from alphapo_cli.stages.estimate.training import estimate

    found = estimate(prepare_case(cfg, world, gpu=options.memory is not None), asked)
    cost = _judging(later, cfg)
    show(found, state, cost)
    emit({**found.as_json(), "run": state, "judge": cost}, json)
    next_step(*following(f"{command} {typed}".rstrip(), found, options.given))


def _judging(later: Plan | None, cfg: TrainConfig) -> dict[str, float | None] | None:
    """The cost of a judge that is paid by the token, for one run; None without one."""
    if later is None:
        return None
    from alphapo_cli.stages.estimate.judging import judge_cost

    cost = judge_cost(later, cfg)
    if cost is None:
        return None
    return {"requests": cost.requests, "tokens": cost.tokens, "usd": cost.usd, "max_cost": later.max_cost}

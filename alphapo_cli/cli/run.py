"""`alphapo run`: train, generate and eval in one line."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    Overrides,
    PrintConfig,
    Replace,
    StripThink,
    announce,
    check_json_target,
    emit,
    is_main_process,
    next_step,
    sources,
    stripping,
    warn,
)
from alphapo_cli.cli.train import page_of_a_failure, settle, show_answers, write_page
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import level, rate

if TYPE_CHECKING:
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.plan import Plan

Reference = Annotated[
    Path | None,
    typer.Option("--reference", metavar="REF.json", help="Default: answers of the model that training started from."),
]
Annotations = Annotated[Path | None, typer.Option("--annotations", metavar="FILE", help="For judge=replay.")]
Difficulty = Annotated[Path | None, typer.Option("--difficulty", metavar="CSV", help="For the length-controlled rate.")]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="USD", help="Judge's price limit for all evaluations of the run."),
]
Gamed = Annotated[Path | None, typer.Option("--gamed", metavar="CSV", help="For the same.")]


_NAMES = {"avg_length": "average length, characters", "n_total": "answers judged", "winrate": "win rate"}


def register(app: typer.Typer) -> None:
    """Add `alphapo run` to the application."""
    app.command(short_help="Train, generate and evaluate, each once.")(run)


def run(
    overrides: Overrides = None,
    reference: Reference = None,
    annotations: Annotations = None,
    difficulty: Difficulty = None,
    gamed: Gamed = None,
    strip_think: StripThink = False,
    max_cost: MaxCost = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Train, generate and evaluate; a stage whose inputs have not changed is not run again.

    Overrides of `generation`, `prompts` (what is answered; else as for `alphapo generate`), `judge`, `statistics` and
    `strip_think` go to the later stages, all others to training. `eval.at=[0,0.5,1]` keeps the models of these fractions
    of training and evaluates each: where more training begins to lose is seen in outcome_over_training.png.

    \b
    Examples:
      alphapo run
      alphapo run objective.shape.alpha=0.5 generation.temperature=0.7
      alphapo run 'eval.at=[0,0.25,0.5,0.75,1]'
      alphapo run model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz prompts=alpaca_eval prompts.path=alpaca_eval.json judge=openai --reference gpt4.json
    \f

    Raises:
        UsageError: --max-cost is no amount.
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.runs.identity import find_run

    files = {"reference": reference, "annotations": annotations, "difficulty": difficulty, "gamed": gamed}
    cfg, plan = composed([*(overrides or []), *stripping(strip_think)], files, config, config_dir)
    plan = dataclasses.replace(plan, max_cost=checked_cost(max_cost))
    if print_config:
        print(to_yaml(cfg), end="")
        print(plan.to_yaml(), end="")
        return
    plan.check(cfg)
    check_json_target(json)
    quiet_libraries(importing=True)
    directory = RunDirectory(find_run(cfg, sys.argv))
    over = directory.check(cfg, replace=replace) in ("complete", "stopped")
    done = over and directory.outcome().get("key") == plan.key
    if not done:
        from alphapo_cli.tracking.wandb_preflight import check_tracking

        check_tracking(cfg.tracking)
        if not over:
            from alphapo_cli.stages.best_metric import greater_is_better
            from alphapo_cli.stages.paths import check_paths

            check_paths(cfg)
            greater_is_better(cfg)
        plan.check_files()
        said = plan.check_inputs(cfg)
        if plan.at or max_cost is not None:
            say(said, file=sys.stderr)
    announce(directory.path)
    note = directory.numerics_note() if over else None
    if note:
        warn(f"this run was {note}")
    if done and not is_main_process():
        return
    if done:
        say("complete")
        settle(directory)
        summary, found = directory.summary() or {}, directory.outcome()
        _tell(found, summary)
        _places(found, directory.path)
    else:
        from alphapo_cli.objective.build import build
        from alphapo_cli.runtime.distributed import leave_processes
        from alphapo_cli.stages.train import run as train
        from alphapo_cli.stages.train_generate_evaluate import after_training, join_tracking

        build(cfg.objective)
        with page_of_a_failure(directory):
            summary = train(cfg, directory, replace=replace)
        leave_processes()
        if not is_main_process():
            return  # of several processes, which train together, the first one generates and evaluates
        write_page(directory.path)  # again with the outcome, if the later stages come so far
        hints: list[str | None] = []
        found = after_training(plan, cfg, directory, lambda found: hints.append(join_tracking(cfg, directory, found)))
        for hint in filter(None, hints):
            # The W&B run was written again with the outcome, and the directory that training printed is superseded.
            say(f"W&B kept offline, now with the outcome; to upload, and no line before this: {hint}", file=sys.stderr)
        write_page(directory.path)
        _report(found, summary, directory.path)
    metrics = {**summary["metrics"], **found["metrics"]}
    places = {"generate": found["generate"], "eval": found["eval"]}
    emit({"path": str(directory.path.resolve()), **summary, "metrics": metrics, **places}, json)


def checked_cost(max_cost: float | None) -> float | None:
    """The value of --max-cost; raises UsageError where it is no amount."""
    if max_cost is not None and not 0 <= max_cost < math.inf:
        raise UsageError(f"--max-cost {max_cost}: needs an amount in USD, 0 or more")
    return max_cost


def composed(
    texts: Sequence[str], files: Mapping[str, Path | None], config: Path | None, config_dir: Path | None
) -> tuple[TrainConfig, Plan]:
    """Compose a command line of `alphapo run`.

    Args:
        texts: its overrides.
        files: --reference and its like, by name.
        config: the file of --config.
        config_dir: the folder of --config-dir.

    Returns:
        The configuration of training, and generation and evaluation after it.

    Raises:
        ConfigError: a key is unknown or a value invalid.
    """
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.plan import hints_from_other_stages, make_plan, split_line, training_part

    where = sources(config_dir)
    training, generation, evaluation = split_line(list(texts))
    file = load(config)
    with hints_from_other_stages("train", where):
        cfg = compose_under(training_part(file), "train", TrainConfig, [read_line(training, where)], where)
    return cfg, make_plan(generation, evaluation, where, file, **files)


def _report(found: dict[str, Any], summary: dict[str, Any], path: Path) -> None:
    """Print the metrics of outcome.json as a table to stderr, both verdicts, and what can be done next."""
    from alphapo_cli.cli.common import print_table
    from alphapo_cli.runs.state import model_step
    from alphapo_cli.runtime.tables import Table

    table = Table(title="outcome", title_justify="left", show_header=False)
    judged = found.get("verdict") or {}
    n, ends = found["metrics"].get("eval/n_total"), found.get("intervals") or {}
    if not ends and judged.get("interval"):  # of an earlier version
        ends = {"eval/win_rate": judged["interval"]}
    for key, value in found["metrics"].items():
        text = f"{value:,.4g}"
        if key.endswith(("win_rate", "winrate")):
            text = (
                f"{rate(value, n, ends[key])} ({level([found])})"
                if key in ends
                else rate(value, None if "length" in key else n)
            )
        elif key.endswith("error"):
            text = f"{100 * value:.1f} points"
        name = key.removeprefix("eval/")
        table.add_row(_NAMES.get(name, name.replace("_", " ")), text)
    for note in found.get("answers", []):
        table.add_row("", note)
    print_table(table)
    if found.get("over_training"):
        from alphapo_cli.stages.over_training import PICTURE

        _report_steps(found["over_training"])
        if (path / PICTURE).is_file():
            say(f"win rate over training: {path / PICTURE}", file=sys.stderr)
        for note in found.get("over_training_notes", []):
            say(f"note: {note}", file=sys.stderr)
    show_answers(path, model_step(summary))
    _tell(found, summary)
    _places(found, path)


def _tell(found: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print the verdicts of the evaluation and of the training to stderr."""
    from alphapo_cli.runs.verdict import beside_evaluation

    if judged := found.get("verdict"):
        say(f"verdict: {judged['sentence']}", file=sys.stderr)
    for sentence in beside_evaluation((summary.get("verdict") or {}).get("sentences", ())):
        say(f"verdict on the training: {sentence}", file=sys.stderr)


def _places(found: dict[str, Any], path: Path) -> None:
    """Print to stderr where the results are, and what can be done next."""
    for name in ("model", "curves.png", "reward_shape.png", "report.html"):
        if (path / name).exists():
            say(f"{name.partition('.')[0].replace('_', ' ')}: {path / name}", file=sys.stderr)
    next_step(f"alphapo chat {shlex.quote(str(path))}")
    next_step(
        f"alphapo compare {shlex.quote(str(found['eval']))} OTHER-EVALUATION", "whether two models can be told apart"
    )


def _report_steps(rows: list[dict[str, Any]]) -> None:
    """Print what `eval.at` found, a line a step, to stderr."""
    from alphapo_cli.cli.common import print_table
    from alphapo_cli.runtime.tables import Table

    rates = [
        key for key in ("win_rate", "length_controlled_winrate") if any(f"eval/{key}" in r["metrics"] for r in rows)
    ]
    names = {"win_rate": "win rate", "length_controlled_winrate": "length-controlled"}
    table = Table(
        "step",
        "of training",
        *(names[key] for key in rates),
        "KL",
        "chosen",
        "rejected",
        title="over training",
        title_justify="left",
    )
    for row in rows:
        metrics, probe = row["metrics"], row["probe"]
        n, ends = metrics.get("eval/n_total"), row["intervals"]
        shown = [(metrics.get(f"eval/{key}"), ends.get(f"eval/{key}")) for key in rates]
        places = [probe.get(key) for key in ("kl/reference", "displacement/chosen", "displacement/rejected")]
        table.add_row(
            str(row["step"]), f"{row['fraction']:.0%}", *("-" if value is None else rate(value, n, interval) for value, interval in shown),
            *("-" if value is None else f"{value:.3f}" for value in places),
        )  # fmt: skip
    print_table(table)
    say(
        f"intervals: {level(rows)}; KL and displacement (chosen, rejected) in nats per token since step 0",
        file=sys.stderr,
    )

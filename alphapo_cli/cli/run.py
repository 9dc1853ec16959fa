"""`alphapo run`: train, generate and eval in one line."""

from __future__ import annotations

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
    next_step,
    sources,
    stripping,
    warn,
)
from alphapo_cli.errors import say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import rate

if TYPE_CHECKING:
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.stages.plan import Plan

Reference = Annotated[
    Path | None,
    typer.Option("--reference", metavar="REF.json", help="Default: answers of the model that training started from."),
]
Annotations = Annotated[Path | None, typer.Option("--annotations", metavar="FILE", help="For judge=replay.")]
Difficulty = Annotated[Path | None, typer.Option("--difficulty", metavar="CSV", help="For the length-controlled rate.")]
Gamed = Annotated[Path | None, typer.Option("--gamed", metavar="CSV", help="For the same.")]


def register(app: typer.Typer) -> None:
    """Add `alphapo run` to the application."""
    app.command()(run)


def run(
    overrides: Overrides = None,
    reference: Reference = None,
    annotations: Annotations = None,
    difficulty: Difficulty = None,
    gamed: Gamed = None,
    strip_think: StripThink = False,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Train, generate and evaluate; a stage whose inputs have not changed is not run again.

    Overrides of `generation`, `prompts` (what is answered; else as for `alphapo generate`), `judge`, `statistics` and
    `strip_think` go to the later stages, all others to training.

    \b
    Examples:
      alphapo run
      alphapo run objective.shape.alpha=0.5 generation.temperature=0.7
      alphapo run model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz prompts=alpaca_eval prompts.path=alpaca_eval.json judge=openai --reference gpt4.json
    """
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.runs.identity import find_run

    files = {"reference": reference, "annotations": annotations, "difficulty": difficulty, "gamed": gamed}
    cfg, plan = composed([*(overrides or []), *stripping(strip_think)], files, config, config_dir)
    if print_config:
        print(to_yaml(cfg), end="")
        print(plan.to_yaml(), end="")
        return
    plan.check(cfg)
    check_json_target(json)
    quiet_libraries(importing=True)
    from alphapo_cli.stages.train_generate_evaluate import after_training, join_tracking

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
        plan.check_inputs(cfg)
    announce(directory.path)
    note = directory.numerics_note() if over else None
    if note:
        warn(f"this run was {note}")
    if done:
        say("complete")
        summary, found = directory.summary() or {}, directory.outcome()
    else:
        from alphapo_cli.objective.build import build
        from alphapo_cli.runtime.distributed import leave_processes
        from alphapo_cli.stages.train import run as train

        build(cfg.objective)
        summary = train(cfg, directory, replace=replace)
        leave_processes()
        hints: list[str | None] = []
        found = after_training(plan, cfg, directory, lambda found: hints.append(join_tracking(cfg, directory, found)))
        for hint in filter(None, hints):
            # The W&B run was written again with the outcome, and the directory that training printed is superseded.
            typer.echo(f"W&B kept offline, now with the outcome; to upload, and no line before this: {hint}", err=True)
        _report(found, summary)
    metrics = {**summary["metrics"], **found["metrics"]}
    places = {"generate": found["generate"], "eval": found["eval"]}
    emit({"path": str(directory.path.resolve()), **summary, "metrics": metrics, **places}, json)


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


def _report(found: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print the metrics of outcome.json as a table to stderr, the verdict on the training, and what can be done next."""
    from alphapo_cli.cli.common import print_table
    from alphapo_cli.runtime.tables import Table

    table = Table(title="outcome", title_justify="left", show_header=False)
    n = found["metrics"].get("eval/n_total")
    for key, value in found["metrics"].items():
        text = rate(value, n) if key.endswith("win_rate") else f"{value:.4g}"
        table.add_row(key.removeprefix("eval/").replace("_", " "), text)
    for note in found.get("answers", []):
        table.add_row("", note)
    print_table(table)
    for sentence in (summary.get("verdict") or {}).get("sentences", ()):
        typer.echo(f"verdict on the training: {sentence}", err=True)
    next_step(f"alphapo compare {found['eval']} OTHER-EVALUATION says whether two models can be told apart")

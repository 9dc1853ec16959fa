"""`alphapo train`."""

from __future__ import annotations

import sys
from typing import Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    Json,
    Overrides,
    PrintConfig,
    Replace,
    announce,
    check_json_target,
    emit,
    is_main_process,
    sources,
    warn,
)
from alphapo_cli.errors import say
from alphapo_cli.runtime.quiet import quiet_libraries


def register(app: typer.Typer) -> None:
    """Add `alphapo train` to the application."""
    app.command(epilog="Several processes: torchrun --nproc-per-node 2 -m alphapo_cli train ...")(train)


def train(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    replace: Replace = False,
    json: Json = None,
) -> None:
    """Train one model and measure displacement on the way. Without overrides: AlphaPO on the embedded world.

    \b
    Examples:
      alphapo train
      alphapo train objective.shape.alpha=0.5 seed=1
      alphapo train objective=dpo model.path=./my-model data=hh_rlhf data.path=pairs.jsonl.gz
      alphapo train objective=ipo objective/shape=power objective.shape.alpha=0.5
    """
    from alphapo_cli.config.compose import compose, to_yaml
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig

    where = sources(config_dir)
    cfg = compose("train", TrainConfig, [read_line(overrides or [], where)], where)
    if print_config:
        print(to_yaml(cfg), end="")
        return
    check_json_target(json)
    quiet_libraries(importing=True)
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.runs.identity import find_run

    directory = RunDirectory(find_run(cfg, sys.argv))
    state = directory.check(cfg, replace=replace)
    over = state in ("complete", "stopped")
    if not over:
        from alphapo_cli.objective.build import build
        from alphapo_cli.tracking.wandb_preflight import check_tracking

        check_tracking(cfg.tracking)
        build(cfg.objective)  # checks that only the parts themselves can make
    announce(directory.path)
    if over:
        summary = directory.summary() or {}
        if is_main_process():
            say(state if not summary.get("reason") else f"{state}: {summary['reason']}")
            note = directory.numerics_note()
            if note:
                warn(f"this run was {note}")
            for setting in directory.changed_data(cfg):
                warn(f"{setting} holds other data now than this run was trained on; --replace trains it anew")
    else:
        from alphapo_cli.runtime.distributed import leave_processes
        from alphapo_cli.stages.train import run

        summary = run(cfg, directory, replace=replace)
        leave_processes()
    if is_main_process() and not over:
        report(summary)
    emit({"path": str(directory.path.resolve()), **summary}, json)


def report(summary: dict[str, Any]) -> None:
    """Print the metrics of the last probe to stderr."""
    from rich.console import Console

    from alphapo_cli.runtime.tables import Table

    if summary.get("reason"):
        say(f"{summary['state']}: {summary['reason']}", file=sys.stderr)
    metrics: dict[str, float] = summary.get("metrics") or {}
    table = Table(title="last probe", title_justify="left", show_header=False)
    rows = (
        ("displacement, chosen (nats per token)", "displacement/chosen"),
        ("displacement, rejected (nats per token)", "displacement/rejected"),
        ("share of chosen answers that became less likely", "displacement/share_chosen_down"),
        ("reward margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
        ("true win rate against the start", "glassbox/true_win_rate"),
    )
    sources = [(key.removeprefix("source/").replace("/", ": ", 1), key) for key in metrics if key.startswith("source/")]
    for label, key in (*rows, *sources):
        if metrics.get(key) is not None:
            table.add_row(label, f"{metrics[key]:+.4f}")
        ends = [metrics.get(f"{key}/{end}") for end in ("low", "high")]
        if None not in ends:
            table.add_row("  95 % interval over prompts", f"{ends[0]:.4f} to {ends[1]:.4f}")
    Console(stderr=True).print(table)

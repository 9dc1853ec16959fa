"""`alphapo train`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alphapo_cli.cli.common import (
    ConfigDir,
    ConfigPath,
    Json,
    Overrides,
    PrintConfig,
    Replace,
    announce,
    check_json_target,
    emit,
    is_main_process,
    next_step,
    print_table,
    shortened,
    sources,
    warn,
)
from alphapo_cli.cli.next_lines import generate_line, is_of_world
from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.runtime.quiet import quiet_libraries
from alphapo_cli.runtime.wording import rate

SHOWN = 3  # answers before and after

if TYPE_CHECKING:
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.runs.state import RunState


def register(app: typer.Typer) -> None:
    """Add `alphapo train` to the application."""
    app.command(epilog="Several processes: torchrun --nproc-per-node 2 -m alphapo_cli train ...")(train)


def train(
    overrides: Overrides = None,
    config: ConfigPath = None,
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
    from alphapo_cli.config.compose import to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.overrides import read_line
    from alphapo_cli.config.schema import TrainConfig

    where = sources(config_dir)
    cfg = compose_under(load(config), "train", TrainConfig, [read_line(overrides or [], where)], where)
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
        from alphapo_cli.stages.best_metric import greater_is_better
        from alphapo_cli.stages.paths import check_paths

        check_paths(cfg)
        greater_is_better(cfg)
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
            from alphapo_cli.stages.paths import changed_data

            for setting in changed_data(directory, cfg):
                warn(f"{setting} holds other data now than this run was trained on; --replace trains it anew")
            settle(directory)
            tell(summary)
    else:
        from alphapo_cli.runtime.distributed import leave_processes
        from alphapo_cli.stages.train import run

        with page_of_a_failure(directory):
            summary = run(cfg, directory, replace=replace)
        leave_processes()
        write_page(directory.path)
    if is_main_process():
        if not over:
            report(summary, directory.path)
        places(directory.path, summary)
    emit({"path": str(directory.path.resolve()), **summary}, json)


def settle(directory: RunDirectory) -> None:
    """Do what a process that was killed at the very end of a run had left: remove its checkpoints, write its page."""
    from alphapo_cli.report.write import refresh_outdated

    directory.tidy()
    refresh_outdated(directory, lambda text: say(text, file=sys.stderr))


def write_page(path: Path) -> None:
    """Write report.html of a run that has ended, in the main process."""
    if is_main_process():
        from alphapo_cli.report.write import refresh_run

        refresh_run(path, lambda text: say(text, file=sys.stderr))


@contextlib.contextmanager
def page_of_a_failure(directory: RunState) -> Iterator[None]:
    """Write the page of a run that fails meanwhile: its curves tell why."""
    try:
        yield
    except AlphapoError:
        if is_main_process() and directory.state == "failed":
            write_page(directory.path)
        raise


def show_answers(path: Path, step: int) -> None:
    """Print to stderr a few answers of a run before and after its training, side by side, where it sampled some.

    Args:
        path: the run directory.
        step: the step that its model is of.
    """
    from alphapo_cli.runtime.tables import Table

    before, after = (_answers(path / "samples" / f"step-{n}.json") for n in (0, step))
    shared = [prompt for prompt in before if prompt in after]
    if step == 0 or not shared:
        return
    table = Table(title=f"answers before and after, {min(SHOWN, len(shared))} of {len(shared)}", title_justify="left")
    for name in ("prompt", "before training", f"at step {step}"):
        table.add_column(name, overflow="fold")
    for prompt in shared[:SHOWN]:
        # A prompt ends with the question, behind a system text that may be long.
        table.add_row(shortened(prompt, 160, keep_end=True), *(shortened(texts[prompt]) for texts in (before, after)))
    print_table(table)


def _answers(file: Path) -> dict[str, str]:
    """Answers by prompt; empty where the file is missing or malformed."""
    import json

    from alphapo_cli.storage.strict_json import read_file

    try:
        rows = json.loads(read_file(file))
        return {str(row["instruction"]): str(row["output"]) for row in rows}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return {}


def _value(key: str, metrics: dict[str, Any], shares: dict[str, int | None]) -> str:
    """A metric in the table; a share with its interval, the recorded one where there is one."""
    if key not in shares:
        return f"{metrics[key]:+.4f}"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    return rate(metrics[key], shares[key], None if low is None or high is None else (low, high))


def report(summary: dict[str, Any], path: Path) -> None:
    """Print to stderr what the training did.

    Args:
        summary: the content of summary.json.
        path: the run directory.
    """
    from rich.console import Console

    from alphapo_cli.runs.state import model_step
    from alphapo_cli.runtime.tables import Table

    if summary.get("reason"):
        say(f"{summary['state']}: {summary['reason']}", file=sys.stderr)
    metrics: dict[str, float] = summary.get("metrics") or {}
    judged = summary.get("verdict") or {}
    pairs = (summary.get("data") or {}).get("probe_pairs")
    table = Table(title="last probe", title_justify="left", show_header=False)
    shares = {
        "displacement/share_chosen_down": pairs,
        "rewards/accuracies": pairs,
        "glassbox/true_win_rate": judged.get("n"),
    }
    rows = (
        ("displacement, chosen (nats per token)", "displacement/chosen"),
        ("displacement, rejected (nats per token)", "displacement/rejected"),
        ("chosen answers that became less likely", "displacement/share_chosen_down"),
        ("reward margin (reward units)", "rewards/margins"),
        ("pairs in the right order by reward", "rewards/accuracies"),
        ("true win rate against the start", "glassbox/true_win_rate"),
    )
    sources = [(key.removeprefix("source/").replace("/", ": ", 1), key) for key in metrics if key.startswith("source/")]
    for key in metrics:
        if key.startswith("subset/") and key.endswith("/rewards/accuracies"):
            name = key.removeprefix("subset/").removesuffix("/rewards/accuracies")
            shares[key] = int(metrics.get(f"subset/{name}/pairs") or 0) or None
            sources.append((f"{name}: pairs in the right order by reward", key))
    for label, key in (*rows, *sources):
        if metrics.get(key) is not None:
            table.add_row(label, _value(key, metrics, shares))
    Console(stderr=True).print(table)
    show_answers(path, model_step(summary))
    tell(summary)


def tell(summary: dict[str, Any]) -> None:
    """Print the verdict of a training to stderr; one of an earlier version has none."""
    for sentence in (summary.get("verdict") or {}).get("sentences", ()):
        say(f"verdict: {sentence}", file=sys.stderr)


def places(path: Path, summary: dict[str, Any]) -> None:
    """Print to stderr where the results of a training are, and what can be done next.

    Args:
        path: the run directory.
        summary: the content of summary.json.
    """
    from alphapo_cli.runs.state import model_step

    for name in ("model", "curves.png", "reward_shape.png", "report.html"):
        if (path / name).exists():
            say(f"{name.partition('.')[0].replace('_', ' ')}: {path / name}", file=sys.stderr)
    sampled = path / "samples" / f"step-{model_step(summary)}.json"
    next_step(generate_line(path))
    next_step(f"alphapo chat {shlex.quote(str(path))}")
    if sampled.is_file() and (path / "samples" / "reference.json").is_file():
        base = path / "samples" / "reference.json"
        line = f"alphapo eval {shlex.quote(str(sampled))} --reference {shlex.quote(str(base))}"
        if is_of_world(path):
            next_step(line)
        else:  # whose true reward nobody knows: the default judge would refuse
            next_step(f"{line} --judge vllm judge.model=JUDGE", "or --judge openai: which answers are better")

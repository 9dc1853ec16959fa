"""`alphapo train`: train from a resolved configuration and write the run directory."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError, visible
from alphapo_cli.objective.build import build
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.idealised import preference_column
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes, start_processes
from alphapo_cli.runtime.heartbeat import at_work
from alphapo_cli.runtime.signals import stop_requests
from alphapo_cli.runtime.tables import Table
from alphapo_cli.runtime.threads import threads
from alphapo_cli.stages.training.cost import forget_peak
from alphapo_cli.stages.training.data_checks import check_pairs
from alphapo_cli.stages.training.extra_models import reads_guide
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.stages.training.low_precision import check_low_precision
from alphapo_cli.stages.training.resume import Busy
from alphapo_cli.stages.training.selection import with_selection
from alphapo_cli.stages.training.session import TrainingSession
from alphapo_cli.stages.training.sharded import check_sharding
from alphapo_cli.stages.training.tracker import Group
from alphapo_cli.storage.run_lock import lock_status


def run(
    cfg: TrainConfig,
    directory: RunDirectory,
    *,
    replace: bool = False,
    builder: InputsBuilder | None = None,
    group: Group | None = None,
    console: Console | None = None,
    divided: bool = False,
) -> dict[str, Any]:
    """Train, unless the directory holds the complete run; an interrupted one resumes from its last checkpoint.

    Args:
        cfg: the resolved configuration.
        directory: the run directory.
        replace: whether to discard the content of the directory.
        builder: the inputs builder of this process, where several runs share it.
        group: the sweep that the run belongs to, for W&B.
        console: where the table of the data is printed; None: stderr.
        divided: whether several processes divide the steps of one among them; otherwise each has its own part of a
            step, which grows with their number.

    Returns:
        The content of summary.json.

    Raises:
        Busy: another process works on this run; a UsageError.
        UsageError: model, data or settings cannot be used; nothing was written.
        AlphapoError: training failed; summary.json has the reason.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; summary.json has the reason.
    """
    if directory.check(cfg, replace=replace) in ("complete", "stopped"):
        summary = directory.summary()
        if summary is None:  # it was there a moment ago
            raise UsageError(f"{directory.summary_file} cannot be read any more; see what became of it")
        return summary
    now = lock_status(directory.lock)
    if now is not None and now.held:  # the lock itself is acquired later; this spares the wait until then
        busy = Busy.of(directory, now)
        raise busy
    forget_peak()
    processes = start_processes(use_cpu=cfg.trainer.use_cpu, together=cfg.sharding.mode != "none", divided=divided)
    try:
        return _run(cfg, directory, processes, builder, group, console, replace=replace)
    except Exception as error:
        cause = processes.cause(error)
        if cause is error:
            raise
        raise cause from error


def _run(
    cfg: TrainConfig, directory: RunDirectory, processes: Processes, builder: InputsBuilder | None,
    group: Group | None, console: Console | None, *, replace: bool,
) -> dict[str, Any]:  # fmt: skip
    """`run`, once this process has joined the others."""
    check_sharding(cfg, processes)
    check_low_precision(cfg)
    if not sys.stderr.isatty():
        disable_progress_bar()  # transformers' own bars for loading and saving
    builder = builder or InputsBuilder(processes=processes)
    console = console or Console(stderr=True, quiet=processes.rank != 0)
    with threads(cfg.trainer.threads):
        at_work("model and data")
        objective, start = start_of(cfg, builder)
        if not console.quiet:  # rich would lay the table out even so, which takes time
            console.print(data_table(start))
        _warn(cfg, objective, console)
        with stop_requests() as stop:
            session = TrainingSession(cfg, directory, builder, processes, objective, start, group, stop)
            return session.run(replace=replace)


def start_of(cfg: TrainConfig, builder: InputsBuilder) -> tuple[Objective, ModelAndData]:
    """Build the objective, prepare model and data, and check that the data have what the objective reads.

    Args:
        cfg: the resolved configuration.
        builder: the inputs builder of this process.

    Returns:
        The objective, and model and data before the first step.

    Raises:
        UsageError: model, data or settings cannot be used.
    """
    objective = build(cfg.objective, cfg.seed)
    with PartialState().main_process_first():
        start = builder.model_and_data(cfg)
    start = with_selection(cfg, start, builder, objective)
    if objective.needs_mismatched:
        start = dataclasses.replace(start, data=start.data.with_mismatched())
    for what, pairs in (("the training data", start.data.train), ("the probe's data", start.data.probe)):
        check_pairs(cfg, objective, pairs, what)
    read = {*objective.columns_of(objective.sides(start.data.train.num_sides))}
    read |= {preference_column(objective, start.data.probe.columns) or ""}
    return objective, dataclasses.replace(start, data=start.data.read_by(read))


def data_table(start: ModelAndData) -> Table:
    """A rich table of the counts and lengths of the data."""
    table = Table(title="data", show_header=False, title_justify="left")
    for label, value in start.data.table:
        table.add_row(label, value)
    table.add_row("starts from", start.start)
    return table


def _warn(cfg: TrainConfig, objective: Objective, console: Console) -> None:
    """Print notes about settings that are valid but have no effect, or hardly any."""
    unread = []
    if objective.gamma and not objective.link.reads_margin:
        unread.append(f"gamma={objective.gamma:g}: the link '{objective.link.name}' reads no margin")
    if cfg.model.reference is not None and not objective.needs_reference:
        unread.append(f"model.reference={cfg.model.reference}: objective '{objective.name}' compares with no reference")
    if cfg.model.guide is not None and not reads_guide(objective):
        unread.append(f"model.guide={cfg.model.guide}: objective '{objective.name}' reads no third model")
    for what in unread:
        console.print(visible(f"note: not read: {what}"), style="yellow", markup=False, soft_wrap=True)
    if cfg.model.path is None and cfg.model.source == "from_scratch" and cfg.trainer.learning_rate < 1e-5:
        console.print(
            f"note: trainer.learning_rate={cfg.trainer.learning_rate} is a setting for large pretrained models; "
            "random weights will hardly move (trainer=small has 5e-4)", style="yellow",
        )  # fmt: skip


__all__ = ["Busy", "Group", "UsageError", "run"]

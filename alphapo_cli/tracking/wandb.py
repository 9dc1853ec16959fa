"""Weights & Biases as a mirror of the run directory, whose failures never stop a run.

metrics.jsonl is the record. Whatever goes wrong in W&B (no account, no network, a full disk, a bug) is logged once on
stderr, and the run continues without it. W&B cannot resume an offline run: `resume=` is ignored and a second directory
of the same id is made. So the history is written again from metrics.jsonl into one new directory, and older directories
of that id are moved to wandb/superseded/, which `wandb sync` does not read.

wandb is imported only when a tracker is opened, or where a variable of its own has to be checked.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import TrackingConfig
from alphapo_cli.config.validate import NAME
from alphapo_cli.storage.atomic import jsonable, sync
from alphapo_cli.tracking.secrets import without_secrets
from alphapo_cli.tracking.tracker import Lines, NullTracker, Row, Tracker, rows_by_step
from alphapo_cli.tracking.wandb_preflight import import_wandb, online_obstacle, reason, tracking_mode, warn

_INIT_TIMEOUT = 20.0  # seconds; wandb's default of 90 would delay every run on a machine without a network
_FINISH_TIMEOUT = 60.0  # seconds for uploading the rest; what is not uploaded stays on disk for `wandb sync`


class WandbTracker:
    """A W&B run that is given up, after one line on stderr, at its first failure.

    Args:
        wandb: the module.
        run: what wandb.init returned.
        directory: the directory of an offline run; None when online.
        first_step: the optimizer step below which rows are on the server already.
    """

    def __init__(self, wandb: Any, run: Any, directory: Path | None, first_step: int = 0) -> None:
        self._wandb = wandb
        self._run = run
        self._directory = directory
        self._first_step = first_step
        self._step = first_step
        self._failed = False

    def log(self, step: int, row: Row) -> None:
        """See `Tracker`; rows below `first_step` are skipped."""

        def add() -> None:
            numbers = {key: value for key, value in _without_nulls(row).items() if key != "step"}
            if numbers:
                self._run.log(numbers, step=self._advance(step))

        if step >= self._first_step:
            self._guard(add)

    def picture(self, name: str, path: Path, step: int) -> None:
        """See `Tracker`."""
        self._guard(lambda: self._run.log({name: self._wandb.Image(str(path))}, step=self._advance(step)))

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """See `Tracker`."""

        def add() -> None:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[jsonable(row.get(column)) for column in columns] for row in rows]
            table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
            self._run.log({name: table}, step=self._advance(step))

        self._guard(add)

    def tag(self, name: str) -> None:
        """See `Tracker`."""

        def add() -> None:
            self._run.tags = (*(self._run.tags or ()), name)

        self._guard(add)

    def overlay(self, name: str, lines: Lines, step: int) -> None:
        """See `Tracker`."""

        def add() -> None:
            xs, ys = ([[point[axis] for point in line] for line in lines.values()] for axis in (0, 1))
            chart = self._wandb.plot.line_series(xs, ys, keys=list(lines), title=name, xname="step")
            self._run.log({f"overlay/{name}": chart}, step=self._advance(step))

        self._guard(add)

    def finish(self, summary: Row, exit_code: int) -> None:
        """See `Tracker`."""
        self._guard(lambda: self._run.summary.update(_without_nulls(summary)))
        # Also after a failure, because the rest of the file is written on closing: by W&B's service, shortly after this
        # returns, and before the process may exit.
        self._guard(lambda: self._run.finish(exit_code=exit_code), always=True)
        if self._failed:
            # A broken service would print a traceback at exit and refuse the next run of this process.
            self._guard(lambda: self._wandb.teardown(), always=True)

    def sync_hint(self) -> str | None:
        """See `Tracker`."""
        return None if self._directory is None else f"wandb sync {shlex.quote(str(self._directory))}"

    def _advance(self, step: int) -> int:
        """The step to log at, at least the current one: W&B drops a row below its current step."""
        self._step = max(self._step, step)
        return self._step

    def _guard(self, call: Callable[[], object], *, always: bool = False) -> None:
        """Call W&B; the first exception is logged, and later calls are skipped unless `always`."""
        if self._failed and not always:
            return
        try:
            call()
        except Exception as error:
            if not self._failed:
                warn(f"W&B failed and is left out from here on ({reason(error)}); metrics.jsonl has everything")
            self._failed = True


def open_tracker(
    cfg: TrackingConfig,
    run_dir: Path,
    run_id: str,
    name: str,
    group: str | None,
    job_type: str,
    config: Mapping[str, Any],
    history: Sequence[Row] = (),
) -> Tracker:
    """Open the tracker of one run. Never raises and never prompts.

    Args:
        cfg: mode, project, entity and tags; WANDB_MODE in the environment overrides a `mode` other than disabled.
        run_dir: W&B's files are written below `run_dir`/wandb.
        run_id: W&B's id, the same for every start of the same run.
        name: the run's name.
        group: the group of runs, None for none.
        job_type: the kind of run, such as "train".
        config: the resolved configuration; entries that look like secrets are left out.
        history: the rows of metrics.jsonl so far, each with its "step"; all are logged again offline, and online
            those that the server lacks.

    Returns:
        A tracker; a `NullTracker` where W&B is disabled or cannot be opened.
    """
    mode = tracking_mode(cfg)
    if mode == "disabled":
        return NullTracker()
    try:
        wandb = import_wandb()
        if mode == "online":
            obstacle = online_obstacle(wandb)
            if obstacle is not None:
                warn(f"W&B is offline for this run: {obstacle}")
                mode = "offline"
        identity = {
            "project": cfg.project,
            "entity": cfg.entity,
            "group": group,
            "job_type": job_type,
            "tags": list(cfg.tags),
            "id": run_id,
            "name": name[:NAME],  # a folder's name may be longer
            "config": without_secrets(jsonable(config)),
        }
        tracker = _open(wandb, mode, Path(run_dir).resolve(), identity)
    except Exception as error:
        warn(f"W&B is off for this run ({reason(error)}); metrics.jsonl has everything")
        return NullTracker()
    for step, row in rows_by_step(history):
        tracker.log(step, row)
    return tracker


def log_group_summary(
    tracker: Tracker,
    pictures: Mapping[str, Path],
    cells: Sequence[Row],
    summary: Row,
    exit_code: int = 0,
    overlays: Callable[[], Mapping[str, Lines]] = dict,
) -> str | None:
    """Log a sweep to its own run, and finish that run.

    Args:
        tracker: the run, of job type "sweep" in the group of the sweep's cells.
        pictures: name -> PNG file.
        cells: one flat row per cell, logged as a table.
        summary: the run's summary.
        exit_code: 0 where no cell failed.
        overlays: metric -> its chart, computed only where W&B is enabled.

    Returns:
        The command that uploads an offline run, or None.
    """
    for title, path in pictures.items():
        tracker.picture(title, path, 0)
    if cells:
        tracker.table("cells", cells, 0)
    if not isinstance(tracker, NullTracker):
        for metric, lines in overlays().items():
            tracker.overlay(metric, lines, 0)
    tracker.finish(summary, exit_code)
    return tracker.sync_hint()


def _open(wandb: Any, mode: str, run_dir: Path, identity: Mapping[str, Any]) -> WandbTracker:
    """Open the run, online if possible; raises wandb's error where an offline run cannot be opened either."""
    run_dir.mkdir(parents=True, exist_ok=True)
    wandb_dir, run_id = run_dir / "wandb", str(identity["id"])
    if mode == "online":
        try:
            run = wandb.init(mode="online", resume="allow", **_arguments(wandb, run_dir, identity))
            _set_aside(wandb_dir.glob("offline-run-*"), run_id)
            return WandbTracker(wandb, run, None, first_step=int(run.starting_step))
        except Exception as error:
            warn(f"W&B is offline for this run: {reason(error)}")
            # The service still holds the id ("run ID is in use") until it is shut down.
            wandb.teardown()
    moved = _set_aside(wandb_dir.glob("*run-*"), run_id)
    try:
        run = wandb.init(mode="offline", **_arguments(wandb, run_dir, identity))
    except BaseException:
        for source, target in moved:
            target.rename(source)
        raise
    return WandbTracker(wandb, run, Path(run.dir).parent)


def _arguments(wandb: Any, run_dir: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of wandb.init: the identity, and settings that disable printing, system metrics and code capture."""
    settings = {
        "silent": True,
        "console": "off",
        "init_timeout": _INIT_TIMEOUT,
        "finish_timeout": _FINISH_TIMEOUT,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "save_code": False,
        "symlink": False,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": 2.0,
    }
    # Settings come and go between versions of wandb, and an unknown one is an error there.
    known = {key: value for key, value in settings.items() if key in wandb.Settings.model_fields}
    # create_new: several runs in one process (the cells of a sweep) stay separate.
    return {**identity, "dir": str(run_dir), "reinit": "create_new", "settings": wandb.Settings(**known)}


def _set_aside(directories: Iterable[Path], run_id: str) -> list[tuple[Path, Path]]:
    """Move those of the W&B `directories` that hold `run_id` to superseded/; (from, to) of each."""
    moved = []
    for source in sorted(directories):
        if not (source / f"run-{run_id}.wandb").exists():
            continue
        superseded = source.parent / "superseded"
        superseded.mkdir(exist_ok=True)
        names = (source.name if n == 0 else f"{source.name}.{n}" for n in count())
        target = next(superseded / name for name in names if not (superseded / name).exists())
        source.rename(target)
        sync(superseded)
        sync(source.parent)
        moved.append((source, target))
    return moved


def _without_nulls(row: Row) -> dict[str, Any]:
    return {key: value for key, value in jsonable(row).items() if value is not None}

"""Weights & Biases as a mirror of the run directory: it may fail, the run may not.

metrics.jsonl is the record. Whatever goes wrong in W&B (no account, no network, a full disk, a bug) is said once on
stderr and the run goes on without it. Resuming offline does not exist in W&B: `resume=` is ignored and a second
directory of the same id begins. So the history is written anew from the record into one new directory, and older
directories of that id are set aside under wandb/superseded/, where `wandb sync` does not look.

wandb is imported only here, and only when a tracker is opened.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from alphapo_cli.config.schema import TrackingConfig
from alphapo_cli.errors import first_line
from alphapo_cli.storage.atomic import jsonable
from alphapo_cli.tracking.wandb_preflight import online_obstacle, tracking_mode, warn, without_secrets

Row = Mapping[str, Any]
Lines = Mapping[str, Sequence[tuple[float, float]]]  # label -> (step, value)

_INIT_TIMEOUT = 20.0  # seconds; wandb's own default of 90 is how long a run would stand still without a network
_FINISH_TIMEOUT = 60.0  # seconds for uploading what is left; the rest stays on disk for `wandb sync`


class Tracker(Protocol):
    """Where metrics and pictures are mirrored. No method raises."""

    def log(self, step: int, row: Row) -> None:
        """Adds the numbers of `row` at `step` (steps never go back); nulls are left out."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Adds the PNG at `path` under `name`."""

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Adds `rows` as a table whose columns are the union of their keys."""

    def tag(self, name: str) -> None:
        """Adds a tag to the run."""

    def overlay(self, name: str, lines: Lines, step: int) -> None:
        """Adds one chart with a line for each entry of `lines`."""

    def finish(self, summary: Row, exit_code: int) -> None:
        """Writes the summary and closes; 0 marks the run as finished, anything else as failed."""

    def sync_hint(self) -> str | None:
        """The command that uploads an offline run, or None when there is nothing to upload."""


class NullTracker:
    """Tracks nothing."""

    def log(self, step: int, row: Row) -> None: ...

    def picture(self, name: str, path: Path, step: int) -> None: ...

    def table(self, name: str, rows: Sequence[Row], step: int) -> None: ...

    def tag(self, name: str) -> None: ...

    def overlay(self, name: str, lines: Lines, step: int) -> None: ...

    def finish(self, summary: Row, exit_code: int) -> None: ...

    def sync_hint(self) -> str | None:
        return None


class WandbTracker:
    """A W&B run that goes quiet, after one line on stderr, at its first failure."""

    def __init__(self, wandb: Any, run: Any, directory: Path | None, first_step: int = 0) -> None:
        """`directory` is the offline run's, None when online; rows below `first_step` are on the server already."""
        self._wandb = wandb
        self._run = run
        self._directory = directory
        self._first_step = first_step
        self._step = first_step
        self._failed = False

    def log(self, step: int, row: Row) -> None:
        def add() -> None:
            numbers = {key: value for key, value in _without_nulls(row).items() if key != "step"}
            if numbers:
                self._run.log(numbers, step=self._advance(step))

        if step >= self._first_step:
            self._guard(add)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._guard(lambda: self._run.log({name: self._wandb.Image(str(path))}, step=self._advance(step)))

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        def add() -> None:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[jsonable(row.get(column)) for column in columns] for row in rows]
            table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
            self._run.log({name: table}, step=self._advance(step))

        self._guard(add)

    def tag(self, name: str) -> None:
        def add() -> None:
            self._run.tags = (*(self._run.tags or ()), name)

        self._guard(add)

    def overlay(self, name: str, lines: Lines, step: int) -> None:
        def add() -> None:
            xs, ys = ([[point[axis] for point in line] for line in lines.values()] for axis in (0, 1))
            chart = self._wandb.plot.line_series(xs, ys, keys=list(lines), title=name, xname="step")
            self._run.log({f"overlay/{name}": chart}, step=self._advance(step))

        self._guard(add)

    def finish(self, summary: Row, exit_code: int) -> None:
        self._guard(lambda: self._run.summary.update(_without_nulls(summary)))
        # Also after a failure: closing is what writes the rest of the file. W&B's service does so shortly after this
        # returns, and before the process may exit.
        self._guard(lambda: self._run.finish(exit_code=exit_code), always=True)
        if self._failed:
            # A broken service would print a traceback at exit and refuse the next run of this process.
            self._guard(lambda: self._wandb.teardown(), always=True)

    def sync_hint(self) -> str | None:
        return None if self._directory is None else f"wandb sync {shlex.quote(str(self._directory))}"

    def _advance(self, step: int) -> int:
        """W&B drops a row below its current step, so a late picture goes to the current one."""
        self._step = max(self._step, step)
        return self._step

    def _guard(self, call: Callable[[], object], *, always: bool = False) -> None:
        if self._failed and not always:
            return
        try:
            call()
        except Exception as error:
            if not self._failed:
                warn(f"W&B failed and is left out from here on ({first_line(error)}); metrics.jsonl has everything")
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
    """A tracker for the run `run_id` that writes below `run_dir`/wandb. Never raises, never asks.

    Args:
        cfg: mode, project, entity and tags; WANDB_MODE in the environment wins over `mode`.
        run_id: the same for the same run, however often it is started.
        config: the resolved configuration; entries that look like secrets are left out.
        history: the rows of metrics.jsonl so far, each with its "step"; written again offline, and online only as far
            as the server lacks them.
    """
    mode = tracking_mode(cfg)
    if mode == "disabled":
        return NullTracker()
    try:
        wandb = _import_wandb()
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
            "name": name,
            "config": without_secrets(jsonable(config)),
        }
        tracker = _open(wandb, mode, Path(run_dir).resolve(), identity)
    except Exception as error:
        warn(f"W&B is off for this run ({first_line(error)}); metrics.jsonl has everything")
        return NullTracker()
    for step, row in _by_step(history):
        tracker.log(step, row)
    return tracker


def log_group_summary(
    cfg: TrackingConfig,
    sweep_dir: Path,
    run_id: str,
    name: str,
    group: str,
    config: Mapping[str, Any],
    pictures: Mapping[str, Path],
    cells: Sequence[Row],
    summary: Row,
    exit_code: int = 0,
    overlays: Callable[[], Mapping[str, Lines]] = dict,
) -> str | None:
    """One run of job type "sweep" in the sweep's group: its pictures, a table of its cells and its summary.

    `pictures` maps names to PNG files, left out where cfg.pictures is off; `cells` are flat rows; `overlays`, asked
    for only where something is tracked, gives a chart a metric. Returns what `sync_hint` returns.
    """
    tracker = open_tracker(cfg, sweep_dir, run_id, name, group, "sweep", config)
    for title, path in pictures.items() if cfg.pictures else ():
        tracker.picture(title, path, 0)
    if cells:
        tracker.table("cells", cells, 0)
    if not isinstance(tracker, NullTracker):
        for metric, lines in overlays().items():
            tracker.overlay(metric, lines, 0)
    tracker.finish(summary, exit_code)
    return tracker.sync_hint()


def _import_wandb() -> Any:
    # Both are read at import. The first stops wandb's own usage reports, whose retries hold up the exit of a process
    # by 13 s where there is no network; the second its banner.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


def _open(wandb: Any, mode: str, run_dir: Path, identity: Mapping[str, Any]) -> WandbTracker:
    """The run, online if possible. Raises what wandb raises when not even an offline run can be opened."""
    run_dir.mkdir(parents=True, exist_ok=True)
    wandb_dir, run_id = run_dir / "wandb", str(identity["id"])
    if mode == "online":
        try:
            run = wandb.init(mode="online", resume="allow", **_arguments(wandb, run_dir, identity))
            _set_aside(wandb_dir.glob("offline-run-*"), run_id)
            return WandbTracker(wandb, run, None, first_step=int(run.starting_step))
        except Exception as error:
            warn(f"W&B is offline for this run: {first_line(error)}")
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
    """What wandb.init gets: the identity, and everything off that costs time, prints or looks around."""
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
    # create_new: several runs in one process (the cells of a sweep) never touch one another.
    return {**identity, "dir": str(run_dir), "reinit": "create_new", "settings": wandb.Settings(**known)}


def _set_aside(directories: Iterable[Path], run_id: str) -> list[tuple[Path, Path]]:
    """Moves those of the W&B `directories` that hold `run_id` to superseded/; returns (from, to) of each."""
    moved = []
    for source in sorted(directories):
        if not (source / f"run-{run_id}.wandb").exists():
            continue
        attic = source.parent / "superseded"
        attic.mkdir(exist_ok=True)
        names = (source.name if n == 0 else f"{source.name}.{n}" for n in count())
        target = next(attic / name for name in names if not (attic / name).exists())
        source.rename(target)
        moved.append((source, target))
    return moved


def _without_nulls(row: Row) -> dict[str, Any]:
    return {key: value for key, value in jsonable(row).items() if value is not None}


def _by_step(history: Sequence[Row]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of `history` joined by step, in ascending order; a later row wins where both have a key."""
    joined: dict[int, dict[str, Any]] = {}
    for row in history:
        if row.get("step") is not None:
            joined.setdefault(int(row["step"]), {}).update(row)
    yield from sorted(joined.items())

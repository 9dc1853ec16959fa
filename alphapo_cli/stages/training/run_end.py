"""How a run ended: pictures, W&B, and summary.json, which commits the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import OVER
from alphapo_cli.runs.verdict import Verdict, sampled_answers, verdict
from alphapo_cli.runtime.signals import deferred_signals
from alphapo_cli.stages.training.best_model import Reading
from alphapo_cli.stages.training.curves import draw_curves, record_shape
from alphapo_cli.stages.training.metrics_log import MetricsLog
from alphapo_cli.storage.atomic import json_text
from alphapo_cli.storage.run_lock import RunLock


@dataclass(frozen=True)
class RunEnd:
    """The end of a training session.

    Attributes:
        state: complete, stopped, failed or interrupted.
        reason: why, unless it is complete.
        code: the exit code, for W&B.
        step: optimizer steps done.
        cost: for summary.json.
        best: the reading of the step that model/ is of, where that is not the last.
        best_metrics: what was measured then.
    """

    state: str
    reason: str | None
    code: int
    step: int
    cost: dict[str, Any]
    best: Reading | None = None
    best_metrics: Mapping[str, Any] | None = None


def record_end(
    end: RunEnd, cfg: TrainConfig, directory: RunDirectory, metrics_log: MetricsLog, lock: RunLock, *,
    probe_pairs: int, log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Finish pictures and tracker, then write summary.json.

    Args:
        end: how the run ended.
        cfg: its configuration.
        directory: its directory.
        metrics_log: closed here.
        lock: the run lock, which is given up with the summary.
        probe_pairs: pairs of the probe.
        log: prints a note.

    Returns:
        The content of summary.json.

    Raises:
        LockLost: another process has taken over the run.
        OSError: the disk refuses a file; the lock is still held.
    """
    metrics_log.close()
    metrics = dict(metrics_log.last_probe if end.best_metrics is None else end.best_metrics)
    if end.state != "interrupted" and cfg.tracking.pictures:
        best = None if end.best is None else end.best.step
        draw_curves(directory, metrics_log.tracker, end.step, log, pairs=probe_pairs, best=best)
    if end.state != "interrupted":
        record_shape(directory, metrics_log.tracker, end.step, log, picture=cfg.tracking.pictures)
    if end.state == "stopped":
        metrics_log.tracker.tag("stopped")
    summary = directory.ending(
        end.state, end.reason, end.step, metrics, end.cost, _verdict(end, cfg, directory, probe_pairs),
        None if end.best is None else end.best.as_json,
    )  # fmt: skip
    text, told = json_text(summary), {**metrics, "state": end.state, "reason": end.reason}
    try:
        lock.prepare(directory.summary_file, text)
    except OSError:
        # W&B believes the first end that it is told: not one that is about to become a failure.
        if end.state not in OVER:
            metrics_log.tracker.finish(told, end.code)
        raise
    metrics_log.tracker.finish(told, end.code)
    with deferred_signals():
        lock.commit(directory.summary_file, text, "done" if end.state in OVER else "free")
    return summary


def _verdict(end: RunEnd, cfg: TrainConfig, directory: RunDirectory, probe_pairs: int) -> Verdict | None:
    """The judgement on a run that is over, by what was measured up to the step that model/ is of."""
    if end.state not in OVER:
        return None
    last = end.step if end.best is None else end.best.step
    return verdict(
        [row for row in directory.rows() if row["step"] <= last], answers=sampled_answers(directory.path),
        pairs=probe_pairs, max_grad_norm=cfg.trainer.max_grad_norm,
    )  # fmt: skip

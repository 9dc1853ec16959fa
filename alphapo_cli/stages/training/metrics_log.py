"""One row of metrics per optimizer step: appended to metrics.jsonl, logged to the tracker, shown by a progress bar."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from alphapo_cli.errors import say
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.heartbeat import SILENCE, at_work
from alphapo_cli.runtime.wording import duration
from alphapo_cli.storage.atomic import jsonable
from alphapo_cli.storage.jsonl import append_jsonl
from alphapo_cli.storage.run_lock import RunLock
from alphapo_cli.tracking.tracker import NullTracker, Tracker

# Metrics that the progress bar shows, and their labels.
SHOWN = {
    "train/loss": "loss",
    "train/rewards/margins": "margin",
    "displacement/chosen": "chosen",
    "glassbox/true_win_rate": "win",
}


PROBED = "displacement/chosen"


class MetricsLog:
    """Collects the metrics of an optimizer step and writes them as one row.

    Args:
        directory: the run directory.
        total_steps: optimizer steps of the run, the length of the progress bar.
        title: title of the progress bar.
        tracker: the W&B run; None for none.
        lock: the run lock, which is checked before every write; None for none.
        lines: whether to print lines in place of the bar where stderr is no terminal.
    """

    def __init__(
        self, directory: RunDirectory, total_steps: int, title: str, tracker: Tracker | None = None,
        lock: RunLock | None = None, lines: bool = False,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.lock = lock
        self.tracker = tracker or NullTracker()
        self.step = 0
        self.row: dict[str, Any] = {}
        self.last_probe: dict[str, Any] = {}
        self.shown: dict[str, str] = {}
        self.probed = False  # whether the row that was written last holds a reading of the probe
        self.bar = tqdm(
            total=total_steps, desc=title, unit="step", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False
        )
        self.lines = lines and bool(self.bar.disable)
        self.total, self.title = total_steps, title
        self.first: tuple[int, float] | None = None  # step and time of the first line
        self.said = time.monotonic()

    def add(self, step: int, row: dict[str, Any]) -> None:
        """Add metrics of `step`; the row of an earlier step is written first."""
        if step != self.step:
            self.flush()
            self.step = step
        self.row.update(jsonable(row))

    def flush(self) -> None:
        """Write the row of the current step."""
        if not self.row:
            return
        row = {"step": self.step, **self.row}
        if self.lock is not None:
            self.lock.check()
        append_jsonl(self.directory.metrics, row)
        self.tracker.log(self.step, self.row)
        for key, label in SHOWN.items():
            if key in self.row:  # null: it was no number, and the last one that was must not stand in for it
                self.shown[label] = "nan" if self.row[key] is None else f"{self.row[key]:.3f}"
        self.probed = PROBED in self.row
        self.row = {}

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`, or print a line at a reading of the probe and every 30 s."""
        if self.lines and (self.probed or time.monotonic() - self.said >= SILENCE):
            self._say(step)
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(step - self.bar.n)
        if step < self.total:
            at_work(f"{self.title}: step {step + 1:,} of {self.total:,}")

    def _say(self, step: int) -> None:
        now = time.monotonic()
        self.first = self.first or (step, now)
        since, began = self.first
        left = (now - began) / (step - since) * (self.total - step) if step > since else None
        parts = [f"step {step:,} of {self.total:,}", *(f"{label} {value}" for label, value in self.shown.items())]
        parts += [f"{duration(left)} left"] if left is not None and step < self.total else []
        say(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)
        self.said, self.probed = now, False

    def begin(self) -> None:
        """Begin to count the time of steps: what was done before the first one says nothing about it."""
        if self.first is not None:
            self.first = (self.first[0], time.monotonic())

    def close(self) -> None:
        """Write the row of the current step and close the progress bar."""
        self.flush()
        self.bar.close()

"""The best step so far by a metric of the probe: its weights until the run is over, and when to stop waiting for a better.

best/step-N/ is a checkpoint without the optimizer. There are at most two: that of the best step so far, and that of the
best step when the newest checkpoint was written, from which a killed run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.runs.checkpoints import Checkpoints
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.stages.best_metric import KEY, greater_is_better
from alphapo_cli.storage.run_lock import RunLock
from alphapo_cli.training.training_state import put_back


@dataclass(frozen=True)
class Reading:
    """One value of the metric after step 0."""

    step: int
    metric: str
    value: float

    @property
    def as_json(self) -> dict[str, Any]:
        """The reading for summary.json."""
        return asdict(self)


class BestModel:
    """Readings of trainer.metric_for_best_model, and the weights of the best one; does nothing where none is named."""

    def __init__(self, cfg: TrainConfig, directory: RunDirectory, aside: frozenset[int] = frozenset()) -> None:
        """See the class.

        Args:
            cfg: the run's configuration.
            directory: its directory.
            aside: steps at which the probe is measured for another reason than `probe.every`; they do not count.

        Raises:
            UsageError: the metric cannot be used.
        """
        self.metric, self.patience = cfg.trainer.metric_for_best_model, cfg.guard.patience
        self.keeps = cfg.trainer.load_best_model_at_end
        self.sign = 1.0 if greater_is_better(cfg) else -1.0
        self.checkpoints = Checkpoints(directory.path / "best", keep=None)
        # Answers are sampled at their own steps, so that a metric of theirs counts whenever there is one.
        sampled = self.metric is not None and self.metric.startswith(("samples/", "glassbox/"))
        self.aside = frozenset() if sampled else aside
        self.readings: list[Reading] = []
        self.known: int | None = None  # the best step when the newest checkpoint was written

    @property
    def best(self) -> Reading | None:
        """The best reading so far, of equal ones the first."""
        return max(self.readings, key=lambda reading: self.sign * reading.value, default=None)

    def share(self, processes: Processes) -> None:
        """Give every process the readings of rank 0, which alone reads metrics.jsonl."""
        self.readings = list(processes.first(lambda: self.readings))

    def go_back(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the readings from the rows of metrics.jsonl that a resumed run begins with.

        Raises:
            UsageError: the weights of the best one are gone.
        """
        for row in rows:
            self.add(int(row["step"]), row)
        self.known = None if self.best is None else self.best.step
        if self.keeps and self.best is not None and self.best.step not in self.checkpoints.steps():
            raise UsageError(
                f"{self.checkpoints.folder}: the weights of step {self.best.step}, the best so far by {self.metric}, are "
                "gone; put them back from a copy, or start over with --replace"
            )

    def check_start(self, row: Mapping[str, Any]) -> None:
        """Check that the first measurement has the metric.

        Raises:
            UsageError: it has not.
        """
        if self.metric is not None and self.metric not in row:
            more = "; probe.samples=N samples answers" if self.metric.startswith("samples/") else ""
            raise UsageError(
                f"{KEY}={self.metric}: this run does not measure it (it does {', '.join(sorted(row))}){more}"
            )

    def add(self, step: int, row: Mapping[str, Any], processes: Processes | None = None) -> None:
        """Add what rank 0 measured at a step, unless it is null or not finite. Collective."""
        if self.metric is None or step == 0 or step in self.aside:
            return
        value = (processes or Processes()).gather([row.get(self.metric)])[0]
        if value is not None and math.isfinite(value):
            self.readings.append(Reading(step, self.metric, float(value)))

    def due(self, step: int) -> bool:
        """Whether the weights of a step are to be kept: it is the best so far."""
        return self.keeps and self.best is not None and self.best.step == step

    def exhausted(self) -> str | None:
        """Why training should end, or None: as many readings as guard.patience allows are no better than the best."""
        best = self.best
        if self.patience is None or best is None:
            return None
        since = sum(reading.step > best.step for reading in self.readings)
        if since < self.patience:
            return None
        return (
            f"{self.metric} has not become better than {best.value:.4g} at step {best.step} in {since} reading(s) "
            f"(guard.patience={self.patience})"
        )

    def tidy(self, *, saved: bool) -> None:
        """Remove weights that are not needed any more; `saved`: a checkpoint has just been written."""
        best = None if self.best is None else self.best.step
        if saved:
            self.known = best
        for step in self.checkpoints.steps():
            if step not in (best, self.known):
                self.checkpoints.remove_step(step)

    def load(self, policy: PolicyModel, processes: Processes) -> dict[str, Any] | None:
        """Load the weights of the best step into the policy. Collective.

        Args:
            policy: the trained model.
            processes: those that run it together; this one alone where each has all of it.

        Returns:
            The metrics of that step; None where there is no best step, or it is not asked for.

        Raises:
            AlphapoError: they are damaged, in every process.
        """
        best = self.best
        if not self.keeps or best is None:
            return None
        checkpoint, fault = None, None
        try:
            checkpoint = self.checkpoints.at(best.step)
        except AlphapoError as error:
            fault = error
        processes.agree(fault)
        assert checkpoint is not None
        put_back(checkpoint, policy)
        return dict(checkpoint.last_probe)

    def remove(self, lock: RunLock) -> None:
        """Remove the weights, once model/ is saved."""
        self.checkpoints.remove(lock)

"""How far the held-out answers of a sweep's points moved, with intervals: what outcome.png shows beside the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphapo_cli.errors import AlphapoError
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import model_step
from alphapo_cli.storage import checksums
from alphapo_cli.storage.jsonl import read_jsonl
from alphapo_cli.sweep import intervals, seed_noise
from alphapo_cli.sweep.analysis import SweepPoint
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.intervals import Estimate

CHANGE, FELL = "displacement/chosen", "displacement/share_chosen_down"


@dataclass(frozen=True)
class Moved:
    """Intervals of the mean change and of the share that fell: metric -> one for each point, over `pairs` pairs."""

    estimates: Mapping[str, Sequence[Estimate | None]]
    pairs: int


def moved(directory: SweepDirectory, points: Sequence[SweepPoint]) -> Moved:
    """Estimate how far the chosen answers of every point moved.

    Args:
        directory: the sweep's directory.
        points: its points.

    Returns:
        Means over the pairs and over complete seeds, with 95 % intervals that allow for both; None for a point without
        rows of probe.jsonl.
    """
    changes: list[dict[Any, np.ndarray]] = []
    for point in points:
        found = {c["point"].get("seed"): _changes(directory.cell(c["id"])) for c in point.cells}
        changes.append({seed: values for seed, values in found.items() if len(values)})
    # Cells whose probe has other pairs than most cannot be averaged with them.
    sizes = [len(values) for runs in changes for values in runs.values()]
    pairs = max(set(sizes), key=sizes.count) if sizes else 0
    runs: list[seed_noise.Runs] = [{s: v for s, v in one.items() if len(v) == pairs} for one in changes]
    fell: list[seed_noise.Runs] = [{s: (v < 0).astype(float) for s, v in one.items()} for one in runs]
    return Moved({CHANGE: intervals.means(runs, bounded=False), FELL: intervals.means(fell)}, pairs)


def _changes(run: RunDirectory) -> np.ndarray:
    """The change of every pair's chosen answer in a run's model, in nats per token: [pairs]; empty where it cannot be read."""
    file, step = run.path / "probe.jsonl", model_step(run.summary() or {})
    try:
        checksums.check_beside(file)
        rows = [(r["pair"], r[CHANGE]) for r in read_jsonl(file) if r.get("step") == step]
        return np.array([value for _, value in sorted(rows) if value is not None], float)
    except (OSError, ValueError, KeyError, TypeError, AlphapoError):
        return np.array([])

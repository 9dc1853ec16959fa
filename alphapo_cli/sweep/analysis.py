"""The best point of a sweep, and whether its advantage over alpha = 0 is statistically distinguishable.

Comparisons are paired: the same held-out prompts (or probe pairs) and the same seeds on both sides. Module
`intervals` explains how they allow for training noise and for picking the best of many points.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import AlphapoError, say
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.state import model_step
from alphapo_cli.storage import checksums
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.jsonl import read_jsonl
from alphapo_cli.sweep import intervals, seed_noise
from alphapo_cli.sweep.collapse import ADVISED, Collapse, collapsed
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.intervals import Estimate
from alphapo_cli.sweep.record import JUDGED, OUTCOMES, WIN_RATE
from alphapo_cli.sweep.seeds_needed import SeedsNeeded, seeds_needed

ALPHA = "objective.shape.alpha"


@dataclass(frozen=True)
class SweepPoint:
    """One combination of swept values, over its seeds."""

    label: str
    alpha: float | None
    series: str  # the swept values other than alpha, where alpha is an axis
    members: tuple[Mapping[str, Any], ...]  # all cells, by seed

    @property
    def cells(self) -> tuple[Mapping[str, Any], ...]:
        """The complete cells."""
        return tuple(c for c in self.members if c["state"] == "complete")

    def mean(self, key: str) -> float | None:
        """Mean of a metric over the complete cells that have it; None if none has."""
        values = [value for c in self.cells if _is_number(value := c["metrics"].get(key))]
        return float(sum(values) / len(values)) if values else None

    @property
    def clipped(self) -> float | None:
        """Share of logged steps whose gradient was clipped, mean over the complete cells; None where nobody logged it."""
        shares = [float(c["clipped"]) for c in self.cells if _is_number(c.get("clipped"))]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class Analysis:
    """Comparison of a sweep's points. Lists have one item per point, in the order of `points`."""

    metric: str | None  # None if no cell is complete
    points: list[SweepPoint]
    estimates: list[Estimate | None]  # mean outcome of each point, with its own 95 % interval
    controls: list[int | None]  # the point with alpha = 0 and the same other values; None for that point itself
    advantages: list[Estimate | None]  # over the control; the intervals are simultaneous
    best: int | None
    ended: int  # ns, when the last of the cells compared ended; see `SweepDirectory.ended`
    collapses: list[Collapse] = field(default_factory=list)
    needed: SeedsNeeded | None = None  # to tell the best point from its control, where that is not told
    prompts: int | None = None  # that every outcome is the mean over

    @property
    def advantage(self) -> Estimate | None:
        """That of the best point over its control; None where it is alpha = 0, or there is nothing to compare with."""
        return None if self.best is None else self.advantages[self.best]


def scale_note(points: Sequence[SweepPoint]) -> str:
    """Why the share of clipped steps and mean h' are in the tables; empty for sweeps in which h' does not change."""
    slopes = [slope for p in points if (slope := p.mean("shape/slope")) is not None]
    if len(slopes) < 2 or max(slopes) - min(slopes) <= 1e-6 * max(map(abs, slopes)):
        return ""
    return (
        f"Mean h' runs from {min(slopes):.3g} to {max(slopes):.3g}: the shape's slope multiplies beta, so at fixed beta and "
        "learning rate alpha changes the size of the steps as well as which answers they weigh, until the gradient is "
        "clipped, when clipping sets it. A fair comparison of alphas tunes beta or the learning rate for each."
    )


def points(cells: Sequence[Mapping[str, Any]]) -> list[SweepPoint]:
    """Group cells by all swept values but the seed, in order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        rest = {k: v for k, v in cell["point"].items() if k != "seed"}
        groups.setdefault(json.dumps(rest), []).append(cell)
    made = []
    for key, members in groups.items():
        point = json.loads(key)
        alpha = point.get(ALPHA)
        words = {k: f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items()}
        by_seed = tuple(sorted(members, key=lambda c: str(c["point"].get("seed"))))
        made.append(
            SweepPoint(
                " ".join(words.values()) or "all",
                float(alpha) if isinstance(alpha, (int, float)) else None,
                " ".join(word for k, word in words.items() if k != ALPHA and ALPHA in point),
                by_seed,
            )
        )
    return made


def outcome_metric(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """The first of `OUTCOMES` that all complete cells have, by which points are compared; None without any."""
    done = [c for c in cells if c["state"] == "complete"]
    return next((m for m in OUTCOMES if done and all(_is_number(c["metrics"].get(m)) for c in done)), None)


def _is_number(value: Any) -> bool:
    """Whether a metric is a finite number: a damaged file may hold NaN or text."""
    return isinstance(value, int | float) and math.isfinite(value)


true_reward = lru_cache(maxsize=1 << 16)(world.true_reward)  # the report asks for the same answers again


def outcomes(run: RunDirectory, metric: str) -> np.ndarray:
    """The outcome per held-out prompt or probe pair of a run's model, whose mean is the metric: [P] in [0, 1]."""
    return _outcomes(run, metric)[0]


def _outcomes(run: RunDirectory, metric: str) -> tuple[np.ndarray, str]:
    """`outcomes`, and a hash of the prompts: only answers to the same prompts can be paired."""
    step = model_step(run.summary() or {})
    if metric == JUDGED:
        # By folder name: the recorded path is of the machine that wrote it, and sweeps are moved.
        folder = run.path / Path(run.outcome().get("eval", "eval")).name
        checksums.check_beside(folder / "annotations.json")
        judged = [r for r in json.loads((folder / "annotations.json").read_bytes()) if r["preference"]]
        return np.array([r["preference"] - 1 for r in judged]), digest([r["instruction"] for r in judged])
    if metric == WIN_RATE:
        files = [run.path / "samples" / f for f in (f"step-{step}.json", "reference.json")]
        for file in files:
            checksums.check_beside(file)
        ours, base = (json.loads(file.read_bytes()) for file in files)
        scores = [[true_reward(r["instruction"], r["output"]) for r in rows] for rows in (ours, base)]
        a, b = np.array(scores[0]), np.array(scores[1])
        return (a > b) + 0.5 * (a == b), digest([r["instruction"] for r in ours])
    checksums.check_beside(run.path / "probe.jsonl")
    rows = [r for r in read_jsonl(run.path / "probe.jsonl") if r["step"] == step]
    rows.sort(key=lambda r: r["pair"])
    asked = digest([[r.get("tokens/chosen"), r.get("tokens/rejected")] for r in rows])
    # Rows of versions without the metric: the sign of the margin, which rounding may decide in a tie.
    named = [r.get("rewards/accuracies", float(r["rewards/chosen"] > r["rewards/rejected"])) for r in rows]
    return np.array(named, float), asked


def _read(directory: SweepDirectory, cell: Mapping[str, Any], metric: str) -> tuple[np.ndarray, str] | None:
    try:
        return _outcomes(directory.cell(cell["id"]), metric)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    except AlphapoError as error:
        say(f"note: {error}; the cell is left out of the intervals", file=sys.stderr)
        return None


def analyse(directory: SweepDirectory) -> Analysis:
    """Estimate every point's outcome and its advantage over alpha = 0, with intervals."""
    ended = directory.ended()  # before the cells are read: one that ends meanwhile is newer than this
    cells = [{**c, "metrics": c["metrics"] or {}} for c in directory.cells()]
    found, metric = points(cells), outcome_metric(cells)
    nothing: list[Any] = [None] * len(found)
    if metric is None:
        return Analysis(None, found, nothing, nothing, nothing, None, ended)
    answers = {c["id"]: _read(directory, c, metric) for p in found for c in p.cells}
    # Cells that answered other prompts than most cannot be paired with them.
    asked = Counter(a[1] for a in answers.values() if a is not None and len(a[0])).most_common(1)
    runs: list[seed_noise.Runs] = [
        {c["point"].get("seed"): a[0] for c in p.cells if (a := answers[c["id"]]) is not None and a[1] == asked[0][0]}
        for p in found
    ]
    controls = [_control(found, k) for k in range(len(found))]
    pairs = [(k, control) for k, control in enumerate(controls) if control is not None]
    compared = dict(zip([k for k, _ in pairs], intervals.advantages(runs, pairs), strict=True))
    tied = tied_best(found, metric)
    # Of tied points, alpha = 0 is named: it needs no reward shaping.
    best = next((k for k in tied if found[k].alpha == 0.0), tied[0])
    advantage, control = compared.get(best), controls[best]
    ends = [{c["point"].get("seed"): float(c["metrics"][metric]) for c in p.cells} for p in found]
    fallen = collapsed(ends)
    needed = None
    if advantage is not None and control is not None and advantage.verdict != intervals.DISTINGUISHABLE:
        least = ADVISED if any(one.point in (best, control) for one in fallen) else intervals.LEAST_SEEDS
        needed = seeds_needed(runs, (best, control), _lines(found), least)
    advantages = [compared.get(k) for k in range(len(found))]
    return Analysis(
        metric, found, intervals.means(runs), controls, advantages, best, ended, fallen, needed,
        next((len(values) for one in runs for values in one.values()), None),
    )  # fmt: skip


def tied_best(found: Sequence[SweepPoint], metric: str) -> list[int]:
    """Indices of the points with the highest mean."""
    means = {k: round(mean, 12) for k, p in enumerate(found) if (mean := p.mean(metric)) is not None}
    return [k for k, mean in means.items() if mean == max(means.values())]


def _lines(found: Sequence[SweepPoint]) -> list[seed_noise.Line]:
    """Points over alpha, a line per combination of the other values; outcomes should change smoothly along it."""
    lines: dict[str, list[tuple[float, int]]] = {}
    for k, point in enumerate(found):
        if point.alpha is not None and point.cells:
            lines.setdefault(point.series, []).append((point.alpha, k))
    return [sorted(line) for line in lines.values()]


def _control(found: Sequence[SweepPoint], k: int) -> int | None:
    if found[k].alpha is None or found[k].alpha == 0.0:
        return None
    return next((i for i, p in enumerate(found) if p.alpha == 0.0 and p.series == found[k].series and p.cells), None)

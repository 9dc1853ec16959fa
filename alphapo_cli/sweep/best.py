"""Which point of a sweep is best, and whether that can be told from alpha = 0.

Comparisons are paired: the same held-out prompts (or probe pairs) and the same seeds on both sides, resampled
together. The best of many points is chosen on the same prompts it is judged on, which favours it; the sentence says
how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphapo_cli.data import glassbox
from alphapo_cli.errors import UsageError
from alphapo_cli.files import read_jsonl
from alphapo_cli.runs import RunDirectory
from alphapo_cli.sweep.state import SweepDirectory

ALPHA = "objective.shape.alpha"
RESAMPLES = 2000
# In order of preference; the first that every complete cell has is the outcome of the sweep.
OUTCOMES = ("glassbox/true_win_rate", "rewards/accuracies")


@dataclass(frozen=True)
class Point:
    """One combination of swept values, over its seeds."""

    label: str
    alpha: float | None
    series: str  # the swept values other than alpha
    members: tuple[Mapping[str, Any], ...]  # all cells, by seed

    @property
    def cells(self) -> tuple[Mapping[str, Any], ...]:
        """The complete ones."""
        return tuple(c for c in self.members if c["state"] == "complete")

    def mean(self, key: str) -> float | None:
        values = [c["metrics"][key] for c in self.cells if c["metrics"].get(key) is not None]
        return float(np.mean(values)) if values else None


def points(cells: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Cells grouped by everything that is swept but the seed, in order."""
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
            Point(
                " ".join(words.values()) or "all",
                float(alpha) if isinstance(alpha, (int, float)) else None,
                " ".join(word for k, word in words.items() if k != ALPHA),
                by_seed,
            )
        )
    return made


def outcome_metric(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """The metric by which points are compared, or None where nothing is complete."""
    done = [c for c in cells if c["state"] == "complete"]
    return next((m for m in OUTCOMES if done and all(c["metrics"].get(m) is not None for c in done)), None)


def outcomes(run: RunDirectory, metric: str) -> np.ndarray:
    """The outcome per held-out prompt or probe pair at a run's last step, whose mean is the metric: [P] in [0, 1]."""
    summary = run.summary() or {}
    step = summary.get("step", 0)
    if metric == "glassbox/true_win_rate":
        ours, base = (
            json.loads((run.path / "samples" / f).read_text()) for f in (f"step-{step}.json", "reference.json")
        )
        scores = [[glassbox.true_reward(r["instruction"], r["output"]) for r in rows] for rows in (ours, base)]
        a, b = np.array(scores[0]), np.array(scores[1])
        wins: np.ndarray = (a > b) + 0.5 * (a == b)
        return wins
    rows = [r for r in read_jsonl(run.path / "probe.jsonl") if r["step"] == step]
    return np.array([float(r["rewards/chosen"] > r["rewards/rejected"]) for r in sorted(rows, key=lambda r: r["pair"])])


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap means of [S, P] values, resampling seeds and prompts independently: [RESAMPLES]."""
    rng = np.random.default_rng(seed)
    s, p = values.shape
    # How often each seed and each prompt is drawn; one product instead of a loop over resamples.
    rows = rng.multinomial(s, np.full(s, 1 / s), size=RESAMPLES)  # [R, S]
    columns = rng.multinomial(p, np.full(p, 1 / p), size=RESAMPLES)  # [R, P]
    means: np.ndarray = ((rows @ values) * columns).sum(axis=1) / (s * p)
    return means


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of [S, P] values."""
    low, high = np.percentile(resampled_means(values), [2.5, 97.5])
    return float(low), float(high)


def per_prompt(directory: SweepDirectory, point: Point, metric: str) -> np.ndarray | None:
    """Outcomes of a point, [seeds, P]; None where a file is missing."""
    try:
        return np.stack([outcomes(directory.cell(c["id"]), metric) for c in point.cells])
    except (OSError, ValueError, KeyError, UsageError):
        return None


def find_best(directory: SweepDirectory) -> dict[str, Any] | None:
    """The `best` object of summary.json, or None where no cell is complete."""
    cells = directory.cells()
    metric = outcome_metric(cells)
    if metric is None:
        return None
    candidates = [p for p in points(cells) if p.cells and p.mean(metric) is not None]
    best = max(candidates, key=lambda p: p.mean(metric) or 0.0)
    found: dict[str, Any] = {
        "id": best.cells[0]["id"],
        "overrides": best.cells[0]["overrides"],
        "metric": metric,
        "value": best.mean(metric),
        "advantage_over_alpha_0": None,
        "interval": None,
        "distinguishable": None,
    }
    zero = next((p for p in candidates if p.alpha == 0.0 and _same_but_alpha(p, best)), None)
    if zero is None:
        return found
    if zero is best:
        return {**found, "advantage_over_alpha_0": 0.0, "interval": [0.0, 0.0], "distinguishable": False}
    seeds = [c["point"].get("seed") for c in best.cells]
    ours, theirs = per_prompt(directory, best, metric), per_prompt(directory, zero, metric)
    if ours is None or theirs is None or seeds != [c["point"].get("seed") for c in zero.cells]:
        return found
    low, high = interval(ours - theirs)
    return {
        **found,
        "advantage_over_alpha_0": float((ours - theirs).mean()),
        "interval": [low, high],
        "distinguishable": bool(low > 0 or high < 0),
    }


def _same_but_alpha(a: Point, b: Point) -> bool:
    def rest(p: Point) -> dict[str, Any]:
        return {k: v for k, v in p.cells[0]["point"].items() if k not in (ALPHA, "seed")}

    return rest(a) == rest(b)


def sentence(directory: SweepDirectory, best: Mapping[str, Any] | None) -> str:
    """What was found, in words."""
    if best is None:
        return "No cell is complete, so there is nothing to compare."
    many = len(points(directory.cells()))
    what = {
        "glassbox/true_win_rate": "true win rate against the start",
        "rewards/accuracies": "held-out preference accuracy",
    }
    name = what.get(best["metric"], best["metric"])
    where = " ".join(o for o in best["overrides"] if not o.startswith("seed="))
    text = f"Best {name}: {best['value']:.3f} at {where} (best of {many})."
    advantage = best["advantage_over_alpha_0"]
    if advantage is None:
        return f"{text} There is no alpha = 0 cell to compare with."
    if advantage == 0.0 and best["interval"] == [0.0, 0.0]:
        return f"{text} That is alpha = 0 itself."
    low, high = best["interval"]
    verdict = "distinguishable from" if best["distinguishable"] else "not distinguishable from"
    return f"{text} It is {verdict} alpha = 0: advantage {advantage:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] (paired bootstrap over prompts and seeds)."

"""What the pictures of a reward's shape show of one run, and the form in which reward_shape.json has it.

Arrays are float64; NaN is what does not exist: the score of an absent answer, a weight that nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.storage.jsonl import json_line
from alphapo_cli.storage.strict_json import read_object

Numbers = npt.NDArray[np.float64]
FILE, PICTURE = "reward_shape.json", "reward_shape.png"
FORMAT = 2  # of reward_shape.json; another one is made anew
_DIGITS = 7


@dataclass(frozen=True)
class Answers:
    """Both answers of P pairs at one step."""

    step: int
    scores: Numbers  # [2, P], chosen first
    weights: Numbers  # [2, P] d loss / d score


@dataclass(frozen=True)
class Field:
    """The derivatives of the loss by both scores of a pair, on a square grid of N x N scores."""

    at: Numbers  # [N] scores, the same on both axes
    chosen: Numbers  # [N, N] d loss / d s_w at s_w = at[column], s_l = at[row]
    rejected: Numbers  # [N, N] d loss / d s_l there


@dataclass(frozen=True)
class RewardShape:
    """The shape of a run's reward over the scores that its held-out pairs have."""

    grid: Numbers  # [N] scores
    shape: Numbers  # [N] h(s) at the end
    slope: Numbers  # [N] h'(s) at the end
    shape_start: Numbers | None  # [N] h(s) at step 0; None: as at the end
    start: Answers
    now: Answers
    steps: Numbers  # [T] of the means, first and last included
    means: Numbers  # [2, T] mean scores
    weights: Numbers  # [2, T] mean d loss / d score
    saturated: Numbers  # [2, T] share of answers whose weight is below `limit`
    limit: float | None  # weight below which an answer counts as saturated
    field: Field | None
    unit: str  # what the score is the logarithm of
    notes: tuple[str, ...] = ()  # what is left out, and why
    names: tuple[str, str] | None = None  # of start and end, where these are no steps of a run
    slope_start: Numbers | None = None  # [N] h'(s) at step 0; None: as at the end

    @property
    def ends(self) -> tuple[str, str]:
        """What start and end are called."""
        return self.names or (f"step {self.start.step}", f"step {self.now.step}")

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return int(self.now.scores.shape[1])

    def as_json(self) -> dict[str, Any]:
        """The content of reward_shape.json."""
        return {
            "format": FORMAT,
            "unit": self.unit,
            "curve": {
                "score": _listed(self.grid), "shape": _listed(self.shape), "slope": _listed(self.slope),
                "shape_start": None if self.shape_start is None else _listed(self.shape_start),
                "slope_start": None if self.slope_start is None else _listed(self.slope_start),
            },
            "start": _answers_json(self.start),
            "end": _answers_json(self.now),
            "steps": [int(step) for step in self.steps],
            "means": _sides(self.means),
            "weights": _sides(self.weights),
            "saturated": {**_sides(self.saturated), "below": _rounded(self.limit)},
            "field": None if self.field is None else {
                "score": _listed(self.field.at), "chosen": [_listed(row) for row in self.field.chosen],
                "rejected": [_listed(row) for row in self.field.rejected],
            },
            "left_out": list(self.notes),
        }  # fmt: skip


def pooled(found: Sequence[RewardShape]) -> RewardShape:
    """The runs of several seeds as one: all of their pairs, means at the steps that all have.

    Args:
        found: at least one, of one objective.

    Returns:
        The curve is that of the widest range of scores, the field that of the first run that has one.
    """
    widest = max(found, key=lambda one: float(one.grid[-1] - one.grid[0]))
    shared = sorted(set.intersection(*(set(one.steps.tolist()) for one in found)))
    if len(found) == 1 or not shared:
        return widest

    def at_shared(name: str) -> Numbers:
        values: list[Numbers] = [getattr(one, name)[:, np.isin(one.steps, shared)] for one in found]
        means: Numbers = np.mean(values, axis=0)
        return means

    def all_pairs(which: str) -> Answers:
        parts = [getattr(one, which) for one in found]
        scores, weights = (np.concatenate([getattr(part, name) for part in parts], 1) for name in ("scores", "weights"))
        return Answers(parts[0].step, scores, weights)

    return replace(
        widest, start=all_pairs("start"), now=all_pairs("now"), steps=np.array(shared, dtype=np.float64),
        means=at_shared("means"), weights=at_shared("weights"), saturated=at_shared("saturated"),
        field=next((one.field for one in found if one.field is not None), None),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
    )  # fmt: skip


def from_json(found: Mapping[str, Any]) -> RewardShape | None:
    """Read what `RewardShape.as_json` wrote; None where it is of another form, or its parts do not fit."""
    if found.get("format") != FORMAT:
        return None
    try:
        curve, field = found["curve"], found["field"]
        start, slope_start = (
            None if (values := curve[name]) is None else _numbers(values) for name in ("shape_start", "slope_start")
        )
        made = RewardShape(
            _numbers(curve["score"]), _numbers(curve["shape"]), _numbers(curve["slope"]),
            start,
            _answers(found["start"]), _answers(found["end"]), _numbers(found["steps"]), _both(found["means"]),
            _both(found["weights"]), _both(found["saturated"]), _one(found["saturated"]["below"]),
            None if field is None else Field(
                _numbers(field["score"]), _table(field["chosen"]), _table(field["rejected"])
            ),
            str(found["unit"]), tuple(str(note) for note in found["left_out"]), slope_start=slope_start,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return made if _fits(made) else None


def write(folder: Path, found: RewardShape | str) -> None:
    """Write reward_shape.json of a run.

    Args:
        folder: its directory.
        found: what it holds, or a sentence that says why there is nothing to draw.

    Raises:
        OSError: the disk refuses the file.
    """
    content = {"format": FORMAT, "why_not": found} if isinstance(found, str) else found.as_json()
    write_atomic(folder / FILE, json_line(checksums.sealed({**content, "probe_bytes": _size(folder)})))


def read(folder: Path) -> RewardShape | str | None:
    """Read reward_shape.json of a run.

    Args:
        folder: its directory.

    Returns:
        What it holds; None where there is none, it is damaged, of another form, or older than the last rows of probe.jsonl.
    """
    found = checksums.intact(read_object(folder / FILE))
    if found is None or found.get("format") != FORMAT or found.get("probe_bytes") != _size(folder):
        return None
    why_not = found.get("why_not")
    return why_not if isinstance(why_not, str) else from_json(found)


def _size(folder: Path) -> int:
    """Bytes of probe.jsonl, to which rows are only added."""
    file = folder / "probe.jsonl"
    return file.stat().st_size if file.is_file() else 0


def _fits(made: RewardShape) -> bool:
    """Whether arrays that belong together have the same sizes, and those that are drawn against have numbers."""
    n, pairs, steps = made.grid.shape, made.now.scores.shape, made.steps.shape[0]
    same = [made.shape.shape == n, made.slope.shape == n]
    same += [start is None or start.shape == n for start in (made.shape_start, made.slope_start)]
    same += [n[0] >= 2, pairs[1] >= 1, steps >= 1, bool(np.isfinite(made.grid).all())]
    same += [part.shape == pairs for part in (made.now.weights, made.start.scores, made.start.weights)]
    same += [part.shape == (2, steps) for part in (made.means, made.weights, made.saturated)]
    if made.field is not None:
        (k,) = made.field.at.shape
        same += [k >= 2, made.field.chosen.shape == (k, k), made.field.rejected.shape == (k, k)]
    return all(same)


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _listed(values: Numbers) -> list[float | None]:
    return [_rounded(float(value)) for value in values]


def _sides(values: Numbers) -> dict[str, list[float | None]]:
    return {"chosen": _listed(values[0]), "rejected": _listed(values[1])}


def _answers_json(answers: Answers) -> dict[str, Any]:
    return {"step": answers.step, "scores": _sides(answers.scores), "weights": _sides(answers.weights)}


def _one(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else None


def _numbers(values: Any) -> Numbers:
    return np.array([math.nan if (one := _one(value)) is None else one for value in values], dtype=np.float64)


def _table(rows: Any) -> Numbers:
    return np.stack([_numbers(row) for row in rows])


def _both(found: Mapping[str, Any]) -> Numbers:
    return np.stack([_numbers(found["chosen"]), _numbers(found["rejected"])])


def _answers(found: Mapping[str, Any]) -> Answers:
    return Answers(int(found["step"]), _both(found["scores"]), _both(found["weights"]))

"""The reward shape of a run: where on h(s) its held-out answers are, how hard the loss pulls at them, and the field.

All of it comes from config.yaml, probe.jsonl and metrics.jsonl, so that a finished run's is made again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import AlphapoError, UsageError, in_words
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective import reward_shape
from alphapo_cli.objective.build import build
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.plots import shape_data
from alphapo_cli.plots.shape_data import Answers, Field, Numbers, RewardShape
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.stages.probe_rows import Rows, probe_rows

_GRID, _FIELD = 101, 25  # scores of the curve, and on each axis of the field
_PAIRS = 2000  # pairs that are kept one by one
_SCHEDULED = "train/objective/scheduled"
_UNITS = {"log_prob": "log-prob", "log_ratio": "log-ratio"}
_TOKEN_SCORES = ("mean", "ratio_mean", "odds")


def describe(
    objective: Objective, contexts: tuple[StepContext, StepContext], readings: Sequence[Answers]
) -> RewardShape | str:
    """Put together what the pictures show.

    Args:
        objective: the objective.
        contexts: that of the first reading, and that of the last.
        readings: the answers at steps in ascending order, the same pairs each time.

    Returns:
        The description; where there is nothing to draw, a sentence that says why.
    """
    nothing = reward_shape.no_preference(objective)
    if nothing is not None:
        return nothing
    start, now = readings[0], readings[-1]
    every = np.concatenate([start.scores.ravel(), now.scores.ravel()])
    every = every[np.isfinite(every)]
    if not every.size:
        return "no held-out pair has a score"
    low, high = float(every.min()), float(every.max())
    room = 0.05 * (high - low) or 0.5
    grid = np.linspace(low - room, high + room, _GRID)
    before, (shape, slope) = (reward_shape.curve(objective, grid, context) for context in contexts)
    means, weights = (np.stack([_means(getattr(r, name)) for r in readings], 1) for name in ("scores", "weights"))
    obstacle = reward_shape.field_obstacle(objective)
    undecided = reward_shape.undecided_weight(objective, contexts[1])
    limit = None if undecided is None else reward_shape.SATURATED * undecided
    saturated = np.full(means.shape, np.nan)
    if limit is not None:
        saturated = np.stack([_means(_below(reading.weights, limit)) for reading in readings], 1)
    notes = [] if obstacle is None else [f"no gradient field and no saturated share: {obstacle}"]
    if not np.isfinite(weights).any():
        notes.append("no gradient weights: they are not known")
    kept = np.arange(now.scores.shape[1])
    if len(kept) > _PAIRS:
        notes.append(f"of {len(kept):,} pairs {_PAIRS:,} are drawn, evenly spaced; means and shares are over all")
        kept = np.linspace(0, len(kept) - 1, _PAIRS).round().astype(int)
    first, last = (Answers(r.step, r.scores[:, kept], r.weights[:, kept]) for r in (start, now))
    return RewardShape(
        grid=grid, shape=shape, slope=slope, shape_start=None if np.array_equal(before[0], shape) else before[0],
        slope_start=None if np.array_equal(before[1], slope) else before[1],
        start=first, now=last, steps=np.array([reading.step for reading in readings], dtype=np.float64),
        means=means, weights=weights, saturated=saturated, limit=limit,
        field=None if obstacle is not None else _field(objective, contexts[1], readings, means),
        unit=_unit(objective), notes=tuple(notes),
    )  # fmt: skip


def _below(weights: Numbers, limit: float) -> Numbers:
    return np.where(np.isfinite(weights), np.abs(weights) < limit, np.nan)


def _means(values: Numbers) -> Numbers:
    """[2] means over the pairs that have a value; NaN where none has."""
    return np.array([np.mean(known) if (known := side[np.isfinite(side)]).size else np.nan for side in values])


def _unit(objective: Objective) -> str:
    name = objective.score.name
    per_token = " per token" if name in _TOKEN_SCORES else ""
    return f"{'log-odds' if name == 'odds' else _UNITS[objective.score.score_kind]}{per_token}"


def _field(objective: Objective, context: StepContext, readings: Sequence[Answers], means: Numbers) -> Field:
    """The field over a square that holds the path of the means and 96 % of the answers at both ends."""
    ends = np.concatenate([readings[0].scores.ravel(), readings[-1].scores.ravel()])
    places = np.concatenate([np.percentile(ends[np.isfinite(ends)], (2, 98)), means[np.isfinite(means)]])
    low, high = float(places.min()), float(places.max())
    room = 0.06 * (high - low) or 0.5
    at = np.linspace(low - room, high + room, _FIELD)
    chosen, rejected = np.meshgrid(at, at)
    return Field(at, *reward_shape.gradients(objective, chosen, rejected, context))


def of_run(run: RunDirectory, objective: Objective | None = None) -> RewardShape | str:
    """Describe a run by its files.

    Args:
        run: its directory.
        objective: its objective, where that has been built already.

    Returns:
        The description, or a sentence that says why there is none.

    Raises:
        OSError: a file cannot be read.
        AlphapoError: a file is not as it was written, or its settings make no objective.
    """
    settings = run.settings()
    if objective is None:
        if run.changed_config() is not None:
            return "the settings are not those that the run was trained with"
        objective = _built(settings)
    nothing = reward_shape.no_preference(objective)
    if nothing is not None:
        return nothing
    blocks = probe_rows(run.path / "probe.jsonl")
    if not blocks:
        return "the held-out pairs have not been measured yet"
    readings = _readings(blocks, objective, settings)
    if isinstance(readings, str):
        return readings
    total = run.read_manifest().get("steps")
    contexts = [_context(objective, run, r.step, total) for r in (readings[0], readings[-1])]
    return describe(objective, (contexts[0], contexts[1]), readings)


def _built(settings: Mapping[str, Any]) -> Objective:
    """The objective of a run's settings, dotted keys."""
    known = {field.name for field in fields(ObjectiveConfig)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        group, _, name = key.partition(".")
        if group == "objective":
            part, _, parameter = name.partition(".")
            if part not in known:
                raise UsageError(f"{key}: this version has no such setting")
            if parameter:
                values.setdefault(part, {})[parameter] = value
            else:
                values[part] = value
    seed = settings.get("seed")
    try:
        return build(ObjectiveConfig(**values), seed if isinstance(seed, int) else 0)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the settings make no objective ({in_words(error)})") from error


def _readings(blocks: Mapping[int, Rows], objective: Objective, settings: Mapping[str, Any]) -> list[Answers] | str:
    """Scores and weights at each step; a sentence where the rows have no scores, and nothing to make them of."""
    weights = {step: _sides(rows, "gradient_weight/{}") for step, rows in blocks.items()}
    if all("scores/chosen" in row for rows in blocks.values() for row in rows):
        return [Answers(step, _sides(rows, "scores/{}"), weights[step]) for step, rows in blocks.items()]
    # Rows of versions without scores.
    bound = objective.parts["score"]
    another = settings.get("model.reference") is not None or objective.reference_every is not None
    if objective.weighs_tokens or bound.columns or (bound.part.needs_reference and (another or min(blocks))):
        return "probe.jsonl has no scores, which an earlier version did not write; train the run anew to see its shape"
    reference = torch.from_numpy(_sides(blocks[min(blocks)], "logps/{}_sum"))
    found = []
    for step, rows in blocks.items():
        sums, lengths = (torch.from_numpy(_sides(rows, key)) for key in ("logps/{}_sum", "tokens/{}"))
        answers = AnswerLogProbs(sums, lengths.clamp(min=1), reference if bound.part.needs_reference else None)
        scores = np.where(lengths.numpy() > 0, objective.scores(answers).numpy(), np.nan)
        found.append(Answers(step, scores, weights[step]))
    return found


def _sides(rows: Rows, key: str) -> Numbers:
    """[2, P] of a key of both sides; NaN for null."""
    names = [key.format(side) for side in ("chosen", "rejected")]
    return np.array([[_number(row.get(name)) for row in rows] for name in names], dtype=np.float64)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan


def _context(objective: Objective, run: RunDirectory, step: int, total: Any) -> StepContext:
    """The context of the loss at a step: progress, and the value to which a schedule with a state had moved."""
    progress = min(step / total, 1.0) if isinstance(total, int) and total > 0 else float(step > 0)
    context = replace(objective.start, progress=progress)
    if "schedule" not in context.states or not step:
        return context
    logged = [row[_SCHEDULED] for row in run.rows() if row["step"] <= step and row.get(_SCHEDULED) is not None]
    if not logged:
        return context
    value = torch.tensor(float(logged[-1]), dtype=torch.float64)
    return replace(context, states={**context.states, "schedule": {"value": value}})


def record(run: RunDirectory, log: Callable[[str], None]) -> RewardShape | str | None:
    """Write reward_shape.json of a run.

    Args:
        run: its directory.
        log: takes a note to the user where it could not be made, which must not fail the run.

    Returns:
        What was written; None where nothing was.

    Raises:
        OSError: the disk refuses the file.
    """
    try:
        found = of_run(run)
    except AlphapoError as error:
        log(f"note: {run.path / shape_data.FILE} was not made ({error})")
        return None
    except OSError as error:
        log(f"note: {run.path / shape_data.FILE} was not made ({error.strerror or error})")
        return None
    except Exception as error:
        log(f"note: {run.path / shape_data.FILE} was not made ({in_words(error)})")
        return None
    shape_data.write(run.path, found)
    return found


def refresh(run: RunDirectory, log: Callable[[str], None], *, picture: bool) -> None:
    """Write reward_shape.json of a run anew, and draw reward_shape.png.

    Args:
        run: its directory.
        log: takes a note to the user where one could not be made or written.
        picture: whether to draw.
    """
    try:
        found = record(run, log)
        if picture and isinstance(found, RewardShape):
            draw(run, found)
    except Exception as error:
        log(f"note: {run.path / shape_data.PICTURE} was not made ({in_words(error)})")


def draw(run: RunDirectory, found: RewardShape) -> None:
    """Draw reward_shape.png of a run.

    Args:
        run: its directory.
        found: its description.

    Raises:
        OSError: the disk refuses the file.
    """
    from alphapo_cli.plots.reward_shape import reward_shape_picture  # loads matplotlib
    from alphapo_cli.runs.title import title

    pairs = run.manifest_section("data").get("probe_pairs")
    settings = run.settings()
    name = title(settings, pairs if isinstance(pairs, int) else found.pairs)
    reward_shape_picture(found, run.path / shape_data.PICTURE, f"Reward shape: {name}")

"""Sampled answers of all points to the same prompts, for reading side by side."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.embedded_world import WORLD
from alphapo_cli.errors import AlphapoError, UsageError, say
from alphapo_cli.report.collect import ReportCell, Sweep
from alphapo_cli.runs.state import model_step
from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import read_file
from alphapo_cli.sweep.analysis import true_reward

MOST_PROMPTS = 32
LONGEST = 1200  # characters shown of one answer
BUDGET = 240_000  # characters of all answers together, so that the page stays small


@dataclass(frozen=True)
class Answer:
    """One answer. `reward` is the true reward, which only the embedded world has."""

    text: str
    reward: float | None
    cut: int  # characters left out at the end


@dataclass(frozen=True)
class Samples:
    """Answers to `prompts`, in the same order."""

    seed: Any
    prompts: list[str]
    start: list[Answer]  # of the model before training
    answers: dict[int, list[Answer]]  # point -> answers at its last step


def samples(sweep: Sweep) -> Samples | None:
    """The answers that complete cells of one seed sampled at their last step.

    Prompts are selected by their hash, so that they cannot be chosen by their answers.

    Args:
        sweep: the sweep.

    Returns:
        The answers of the seed with the most complete cells, or None where no cell has sampled any.
    """
    done = [c for c in sweep.cells if c.state in ("complete", "stopped") and (c.run.path / "samples").is_dir()]
    seeds = Counter(json.dumps(c.seed) for c in done)
    for seed, _ in seeds.most_common():
        cells = {c.point: c for c in done if json.dumps(c.seed) == seed}
        texts = {point: rows for point, cell in cells.items() if (rows := _last(cell))}
        starts = (_start(cell) for cell in cells.values())
        start = next((rows for rows in starts if rows), {})
        shared = set(start).intersection(*texts.values()) if texts else set()
        if shared:
            return _drawn(json.loads(seed), shared, start, texts)
    return None


def _drawn(seed: Any, shared: set[str], start: dict[str, Any], texts: dict[int, dict[str, Any]]) -> Samples:
    """Select prompts among `shared`, within MOST_PROMPTS and BUDGET."""
    columns = [start, *texts.values()]
    prompts: list[str] = []
    spent = 0
    for prompt in sorted(shared, key=lambda p: hashlib.sha256(p.encode()).digest())[:MOST_PROMPTS]:
        spent += sum(min(len(str(rows[prompt]["output"])), LONGEST) for rows in columns)
        if prompts and spent > BUDGET:
            break
        prompts.append(prompt)
    return Samples(
        seed,
        prompts,
        [_answer(start[p]) for p in prompts],
        {point: [_answer(rows[p]) for p in prompts] for point, rows in texts.items()},
    )


def _start(cell: ReportCell) -> dict[str, Any]:
    """The answers before training: in the embedded world those that win rates compare with, else those of step 0."""
    # The latter are drawn with the seeds of the last step, so that a difference is training's; terminals show them, too.
    reference = _read(cell, "reference.json")
    if any(row.get("dataset") == WORLD for row in reference.values()):
        return reference
    return _read(cell, "step-0.json") or reference


def _last(cell: ReportCell) -> dict[str, Any]:
    return _read(cell, f"step-{model_step(cell.run.summary() or {})}.json")


def _read(cell: ReportCell, name: str) -> dict[str, Any]:
    """Rows in AlpacaEval's format by instruction; empty where the file is missing or malformed."""
    path: Path = cell.run.path / "samples" / name
    try:
        checksums.check_beside(path)
        rows = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    except UsageError as error:
        say(f"note: {error}; its answers are left out", file=sys.stderr)
        return {}
    if not isinstance(rows, list):
        return {}
    return {str(r["instruction"]): r for r in rows if isinstance(r, dict) and "instruction" in r and "output" in r}


def _answer(row: dict[str, Any]) -> Answer:
    text, reward = str(row["output"]), None
    if row.get("dataset") == "glassbox":
        try:
            reward = true_reward(str(row["instruction"]), text)
        except AlphapoError:
            reward = None
    return Answer(text[:LONGEST], reward, max(len(text) - LONGEST, 0))

"""Directories of sweeps written by hand: any grid, any state of its cells, without training anything."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from alphapo_cli.config.compose import to_yaml
from alphapo_cli.config.overrides import Sources
from alphapo_cli.data.glassbox import world
from alphapo_cli.storage.run_lock import acquire
from alphapo_cli.sweep.grid import Cell, Grid, make
from alphapo_cli.tracking import metrics

ALPHA = "objective.shape.alpha"
OPENING = {"won": "sure ,", "tied": "", "lost": "hmm ,"}  # worth +1.4, 0 and -1.4 of true reward


@dataclass
class Made:
    """What a cell is to look like; change it before it is written."""

    win: float = 0.5  # share of prompts won against the start
    fall: float = -0.3  # displacement of the chosen answers at the end
    state: str | None = "complete"  # None: no directory at all
    reason: str | None = None
    steps: tuple[int, ...] = (0, 4, 8)
    samples: bool = True
    outcome: bool = True  # whether the embedded world's metrics are there
    answers: dict[str, str] = field(default_factory=dict)  # instruction -> output, instead of made-up ones
    files: dict[str, str | None] = field(default_factory=dict)  # file -> text instead; None: missing


Change = Callable[[Cell, Made], None]


def craft(
    path: Path, *line: str, name: str | None = "alpha", prompts: int = 24, change: Change | None = None,
    description: str | None = None,
) -> Path:  # fmt: skip
    """The directory of `alphapo sweep <name> <line>`, each cell as `change(cell, made)` wants it."""
    grid = _grid(name, line)
    path.mkdir(parents=True, exist_ok=True)
    cells = [{"id": c.id, "point": dict(c.point), "overrides": list(c.overrides)} for c in grid.cells]
    record = {
        "name": grid.name, "hash": grid.hash, "description": grid.description if description is None else description,
        "base": dict(grid.base), "keys": list(grid.keys), "versions": {}, "cells": cells,
    }  # fmt: skip
    (path / "sweep.json").write_text(json.dumps(record))
    for cell in grid.cells:
        made = Made()
        if change:
            change(cell, made)
        if made.state is not None:
            _cell(path / "cells" / cell.id, cell, made, prompts, ["alphapo", "sweep", *filter(None, [name]), *line])
    return path


@lru_cache(maxsize=64)
def _grid(name: str | None, line: tuple[str, ...]) -> Grid:
    return make(name, line, Sources())


def _cell(folder: Path, cell: Cell, made: Made, prompts: int, command: list[str]) -> None:
    instructions = world.instructions(prompts)
    reference = [_answer(i, "tied") for i in instructions]
    rng = random.Random(cell.cfg.seed)
    rank = {i: rng.random() for i in instructions}
    made.win = sum(rank[i] < made.win for i in instructions) / prompts
    won = sorted(instructions, key=rank.__getitem__)[: round(made.win * prompts)]
    rows = [_row(step, made.steps[-1], made) for step in made.steps]
    last = made.steps[-1] if made.steps else 0
    texts: dict[str, str] = {
        "config.yaml": to_yaml(cell.cfg),
        "manifest.json": json.dumps({"made_by": "alphapo", "command": command, "versions": {"alphapo": "0.1.0"}}),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "summary.json": json.dumps({
            "state": made.state, "reason": made.reason, "step": last,
            "metrics": {k: v for k, v in rows[-1].items() if k != "step" and not k.startswith("train/")}
            if made.state == "complete" and rows else {},
            "cost": {"seconds": 12.5},
        }),
    }  # fmt: skip
    if made.samples:
        outputs = [made.answers.get(i) or _answer(i, "won" if i in won else "lost") for i in instructions]
        for file, column in (("reference.json", reference), (f"step-{last}.json", outputs)):
            texts[f"samples/{file}"] = json.dumps(
                [
                    {"dataset": "glassbox", "instruction": i, "output": o}
                    for i, o in zip(instructions, column, strict=True)
                ]
            )
    if made.state == "running":
        acquire(folder / ".claim")  # by this process, which is alive
    for file, text in {**texts, **made.files}.items():
        if text is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")


def shape_rows(pairs: int = 5, steps: tuple[int, ...] = (0, 4, 8)) -> str:
    """probe.jsonl of a run whose pairs have scores and gradient weights."""
    rows = []
    for step in steps:
        for pair in range(pairs):
            row: dict[str, Any] = {"step": step, "pair": pair}
            for i, side in enumerate(("chosen", "rejected")):
                row[f"scores/{side}"] = -1.0 - 0.2 * pair - 0.05 * step * (1 + i)
                row[f"gradient_weight/{side}"] = (-1) ** (i + 1) * 10.0**-pair
            rows.append(json.dumps(row))
    return "\n".join(rows) + "\n"


def _answer(instruction: str, fate: str) -> str:
    task = world.parse(instruction)
    things = world.CATEGORIES[task.category][1 : 1 + task.count]
    return world.WorldAnswer(OPENING[fate], tuple(things)).text()


def _row(step: int, last: int, made: Made) -> dict[str, Any]:
    """A row with every probe metric, moving evenly from step 0 to the last step."""
    part = step / last if last else 1.0
    known = metrics.keys()
    row: dict[str, Any] = {key: 0.5 for key in known if not key.startswith(("train/", "glassbox/", "eval/"))}
    down = min(max(0.5 - made.fall, 0.0), 1.0) if step else 0.0
    row |= {
        "step": step, "displacement/chosen": made.fall * part, "displacement/rejected": 2 * made.fall * part,
        "rewards/margins": 0.2 + part, "displacement/share_chosen_down": down,
        "displacement/quadrant/down_down": down * 0.9, "displacement/quadrant/down_up": down * 0.1,
        "displacement/quadrant/up_down": (1 - down) * 0.7, "displacement/quadrant/up_up": (1 - down) * 0.3,
        "displacement/margin_from_chosen": None, "gradient_weight/chosen": -0.4, "gradient_weight/rejected": 0.3,
        "kl/reference": 0.2 * part, "train/loss": 0.7 - 0.1 * part,
    }  # fmt: skip
    if made.outcome:
        row |= {"glassbox/true_win_rate": 0.5 + (made.win - 0.5) * part, "glassbox/length": 9.0,
                "glassbox/true_reward": 4.0}  # fmt: skip
    return row

"""Does a score of a pair foretell its displacement, and does it help to train without the pairs it warns of?

    python docs/pair_scores.py runs/pair-scores

Trains four losses in the embedded world with three seeds each, on all pairs, without the 10 or 20 % that
length-normalised CHES warns of, and without as many at random; measures those trained on all pairs; prints tables in Markdown.
The same line again goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

LOSSES = {
    "dpo": ("objective=dpo",),
    "alphapo, alpha -0.5": ("objective=alphapo", "objective.shape.alpha=-0.5"),
    "simpo (alpha 0)": ("objective=alphapo", "objective.shape.alpha=0"),
    "alphapo, alpha 0.5": ("objective=alphapo", "objective.shape.alpha=0.5"),
}
SEEDS = (0, 1, 2)
SCORES = (
    "ches", "ches_normalised", "inner_product", "last_inner_product", "edit_distance", "common_prefix", "length_ratio",
    "reference_gap",
)  # fmt: skip
BY, SHARES = ("ches_normalised", "random"), (0.9, 0.8)
T_975 = 4.303  # 97.5 % quantile of Student's t with 2 degrees of freedom
METRICS = (("glassbox/true_win_rate", "true win rate"), ("displacement/chosen", "chosen displacement"))


def main(out: Path) -> None:
    seeds = f"seed={','.join(map(str, SEEDS))}"
    selection = (f"data.select.by={','.join(BY)}", "data.select.keep=lowest",
                 f"data.select.share={','.join(map(str, SHARES))}")  # fmt: skip
    whole, selected = {}, {}
    for number, (name, loss) in enumerate(LOSSES.items()):
        whole[name] = sweep(out / f"whole-{number}", *loss, seeds)
        selected[name] = sweep(out / f"selected-{number}", *loss, seeds, *selection)
    print(correlation_table({name: measured(cells, out / "measured") for name, cells in whole.items()}), end="\n\n")
    for metric, title in METRICS:
        print(f"{title}:\n\n{selection_table(whole, selected, metric)}", end="\n\n")


def alphapo(*line: str) -> None:
    subprocess.run([sys.executable, "-m", "alphapo_cli", *line], check=True, stdout=subprocess.DEVNULL)


def sweep(folder: Path, *line: str) -> list[dict[str, Any]]:
    """The cells of a sweep, each with its directory and its overrides as a mapping."""
    alphapo("sweep", *line, "tracking.mode=disabled", "--out", str(folder))
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    return [
        {**cell, "path": folder / "cells" / cell["id"], "set": dict(text.split("=", 1) for text in cell["overrides"])}
        for cell in cells
    ]


def measured(cells: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Score -> rank correlation with the chosen answer's displacement, for each run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "result.json"
    alphapo("measure", *(str(cell["path"]) for cell in cells), f"run.dir={folder}", "--json", str(file))
    return [result["correlations"] for result in json.loads(file.read_text())["models"]]


def correlation_table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [["score", *found]]
    for score in SCORES:
        values = ([run[score]["rho"] for run in runs] for runs in found.values())
        lines.append([f"`{score}`", *(interval(column) for column in values)])
    return table(lines)


def selection_table(whole: dict[str, Any], selected: dict[str, Any], metric: str) -> str:
    """Differences from training on all pairs, and of a score from random, paired by seed."""
    lines = [["left out", *whole]]
    for share in SHARES:
        found = {by: [by_seed(selected[name], metric, by, share) for name in whole] for by in BY}
        every = [by_seed(whole[name], metric) for name in whole]
        lines += [[f"{1 - share:.0%} by `{by}`", *map(differences, found[by], every)] for by in BY]
        lines.append([f"{1 - share:.0%}, `{BY[0]}` minus `{BY[1]}`", *map(differences, *found.values())])
    return table(lines)


def by_seed(
    cells: Sequence[dict[str, Any]], metric: str, by: str | None = None, share: float = 1.0
) -> dict[str, float]:
    """Seed -> the metric, of the cells that select so."""
    return {
        cell["set"]["seed"]: cell["metrics"][metric]
        for cell in cells
        if (cell["set"].get("data.select.by"), float(cell["set"].get("data.select.share", 1))) == (by, share)
    }


def differences(ours: dict[str, float], theirs: dict[str, float]) -> str:
    return interval([ours[seed] - theirs[seed] for seed in ours])


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval over three seeds."""
    return f"{fmean(values):+.3f} ± {T_975 * stdev(values) / math.sqrt(len(values)):.3f}"


def table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *rest])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

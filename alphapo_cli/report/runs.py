"""The data of a page about runs: one, or several side by side, in the form that the pages of sweeps have.

Every run is a point of its own, named by the settings that tell it from the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.report.collect import Sweep, read_cell, short, shown
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.title import title
from alphapo_cli.sweep import analysis as best_of
from alphapo_cli.sweep.directory import SweepDirectory

# Settings that name a run, those first that people compare; others follow where these do not suffice.
NAMING = ("objective.name", best_of.ALPHA, "objective.beta", "trainer.learning_rate", "model.path", "data.path", "seed")


def find_runs(paths: Sequence[Path]) -> list[RunDirectory]:
    """The run directories that are meant: a sweep stands for its cells.

    Args:
        paths: directories of runs and of sweeps.

    Returns:
        The runs, each once, in order.

    Raises:
        UsageError: a path is neither, or a sweep of which no cell has begun.
    """
    found: dict[Path, RunDirectory] = {}
    for path in paths:
        if SweepDirectory(path).file.is_file():
            cells = SweepDirectory(path).cells()
            runs = [SweepDirectory(path).cell(cell["id"]) for cell in cells if cell["state"] != "pending"]
            if not runs:
                raise UsageError(f"{path}: no cell of this sweep has begun, so there is nothing to show")
        else:
            runs = [RunDirectory(path)]
            _check(runs[0])
        found |= {run.path.resolve(): run for run in runs}
    return list(found.values())


def _check(run: RunDirectory) -> None:
    """Raise UsageError where the directory holds no run."""
    if not run.path.is_dir():
        raise UsageError(f"{run.path}: no such directory; give the directory that 'alphapo train' or 'sweep' printed")
    if not run.is_run or not run.config.is_file():
        inside = sorted(p.parent for p in run.path.glob("*/manifest.json"))
        hint = f"; did you mean {inside[-1]}?" if inside else "; give one that 'alphapo train' or 'sweep' printed"
        raise UsageError(f"{run.path} is the directory of neither a run nor a sweep{hint}")


def read_runs(runs: Sequence[RunDirectory], path: Path) -> Sweep:
    """Read runs.

    Args:
        runs: their directories, at least one.
        path: the directory that the page is in.

    Returns:
        A point for each run; its swept keys are those in which the runs differ, as far as they name them.
    """
    values = _told_apart([run.settings() for run in runs], [run.path.resolve().name for run in runs])
    members = [_member(run, point) for run, point in zip(runs, values, strict=True)]
    points = [_point(member) for member in members]
    cells = [read_cell(run, member, k) for k, (run, member) in enumerate(zip(runs, members, strict=True))]
    nothing: list[Any] = [None] * len(points)
    analysis = best_of.Analysis(best_of.outcome_metric(members), points, nothing, nothing, nothing, None, 0)
    keys = list(dict.fromkeys(key for point in values for key in point))
    return Sweep(path, {"name": _name(runs, keys), "keys": keys}, cells, analysis, None, "")


def _name(runs: Sequence[RunDirectory], keys: Sequence[str]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs, by {' and '.join(map(short, keys))}"
    pairs = runs[0].manifest_section("data").get("probe_pairs")
    return title(runs[0].settings(), pairs if isinstance(pairs, int) else None)


def _told_apart(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The values by which each run is named; empty for one run alone."""
    every = list(dict.fromkeys([*NAMING, *(key for one in settings for key in one)]))
    differing = [key for key in every if len({_text(one.get(key)) for one in settings}) > 1]
    # A method's YAML sets many keys: its name stands for them.
    if "objective.name" in differing:
        differing = [key for key in differing if key in NAMING or not key.startswith("objective.")]
    chosen: list[str] = []
    told = 1
    for key in differing:
        now = len({_text([one.get(k) for k in (*chosen, key)]) for one in settings})
        if now > told:
            chosen.append(key)
            told = now
    # As a sweep's key, `seed` would have the runs averaged.
    found = [{f"run.{k}" if k == "seed" else k: one.get(k) for k in chosen} for one in settings]
    if told < len(settings):
        found = [{**point, "run": name} for point, name in zip(found, names, strict=True)]
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _member(run: RunDirectory, point: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep has of a cell."""
    ended, judged = run.summary(), run.outcome()
    summary = ended or {}
    return {
        "id": run.path.resolve().name,
        "point": dict(point),
        "overrides": [f"{short(key)}={shown(value)}" for key, value in point.items()],
        "state": run.state_of(ended),
        "reason": summary.get("reason"),
        "step": summary.get("step", 0),
        "metrics": {**(summary.get("metrics") or {}), **(judged.get("metrics") or {})},
        "cost": summary.get("cost") or {},
        "clipped": (summary.get("verdict") or {}).get("clipped"),
        "pairs": (summary.get("data") or {}).get("probe_pairs"),
    }


def _point(member: Mapping[str, Any]) -> best_of.SweepPoint:
    alpha = member["point"].get(best_of.ALPHA)
    rest = [text for key, text in zip(member["point"], member["overrides"], strict=True) if key != best_of.ALPHA]
    number = isinstance(alpha, int | float)
    return best_of.SweepPoint(
        " ".join(member["overrides"]) or member["id"], float(alpha) if number else None,
        " ".join(rest) if number else "", (member,),
    )  # fmt: skip

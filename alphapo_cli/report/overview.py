"""What a sweep shows beside its report: displacement, outcome and reward_shape.png in its directory, and a run in W&B."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import say
from alphapo_cli.report import write
from alphapo_cli.storage.hashing import digest
from alphapo_cli.sweep.analysis import Analysis
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Grid

PICTURES = ("displacement", "outcome")
SHAPE = "reward_shape"  # which not every sweep has


def existing_pictures(directory: SweepDirectory) -> dict[str, Path]:
    """The pictures that the sweep's directory has, by name."""
    return {name: path for name in (*PICTURES, SHAPE) if (path := directory.path / f"{name}.png").is_file()}


def outdated(pictures: Mapping[str, Path], analysis: Analysis) -> bool:
    """Whether a picture is missing, or a cell ended after it was drawn (by an invocation that was then killed)."""
    drawn = [path.stat().st_mtime_ns for path in pictures.values()]
    return not pictures.keys() >= set(PICTURES) or min(drawn) < analysis.ended


def make_pictures(directory: SweepDirectory, analysis: Analysis, grid: Grid) -> dict[str, Path]:
    """Draw displacement.png, outcome.png and reward_shape.png of the sweep; none where no cell has rows or tracking.pictures is off."""
    if not grid.cells[0].cfg.tracking.pictures:
        return {}
    from alphapo_cli.report import collect
    from alphapo_cli.report import pictures as drawing

    sweep = collect.read(directory, analysis)
    cells = drawing.curves(sweep)
    if not any(cell.rows for cell in cells):
        return {}
    pictures = {picture: directory.path / f"{picture}.png" for picture in (*PICTURES, SHAPE)}
    pictures = drawing.draw(sweep, cells, pictures)
    if analysis.ended:  # the time of the last cell they show: one that ended while they were drawn is newer
        with contextlib.suppress(OSError):
            for path in pictures.values():
                os.utime(path, ns=(analysis.ended, analysis.ended))
    return pictures


def track(
    grid: Grid,
    directory: SweepDirectory,
    analysis: Analysis,
    pictures: Mapping[str, Path],
    summary: Mapping[str, Any],
    failed: bool,
) -> None:
    """Log the sweep as a W&B run in the group of its cells, with its pictures and a table of its cells.

    The frontier is the report's, which is written before.
    """
    from alphapo_cli.tracking.wandb import log_group_summary, open_tracker

    cfg, name = grid.cells[0].cfg.tracking, directory.path.name
    # The same grid may run elsewhere.
    run_id = f"sweep-{digest([directory.hash(grid), str(directory.path.resolve())])[:12]}"
    rows = [
        {"cell": c["id"], "overrides": " ".join(c["overrides"]), "state": c["state"], **c["metrics"]}
        for c in summary["cells"]
    ]
    hint = log_group_summary(
        open_tracker(cfg, directory.path, run_id, name, name, "sweep", dict(grid.base)),
        {**pictures, **write.frontier_picture(directory)} if cfg.pictures else pictures,
        rows,
        {"best": summary["best"]} if summary["best"] else {},
        exit_code=int(failed),
        overlays=lambda: write.overlays(directory, analysis),
    )
    if hint:
        say(
            f"W&B kept offline; to upload: wandb sync {directory.path}/wandb/offline-run-* {directory.path}/cells/*/wandb/offline-run-*",
            file=sys.stderr,
            flush=True,
        )

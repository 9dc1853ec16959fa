"""What the sweep engine itself takes for a cell, beside the cell's own work, and how long `--status` takes.

    python benchmarks/sweep_overhead.py                  # 200 cells of one step on two workers: about three minutes

(wall time x workers - the cells' own seconds) of a sweep of 200 cells and one of a cell for each worker; their
difference, over the additional cells, leaves start-up out. Composing configurations, claims, state files, the table, the
report and the summary are all in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import processes

CELL = ("trainer.max_steps=1", "tracking.mode=disabled", "tracking.pictures=false", "trainer.threads=1")


@dataclass(frozen=True)
class Measured:
    """Seconds of one sweep."""

    wall: float
    cells: float  # sum of the cells' own


def line(cells: int, workers: int, out: Path) -> list[str]:
    alphas = ",".join(f"{-1 + 3 * i / cells:.4f}" for i in range(cells))
    return [
        sys.executable, "-m", "alphapo_cli", "sweep", "alpha", f"objective.shape.alpha={alphas}", *CELL,
        f"launcher.workers={workers}", "--out", str(out),
    ]  # fmt: skip


def sweep(cells: int, workers: int, folder: Path) -> Measured:
    out = folder / f"cells-{cells}"
    cost = processes.timed(line(cells, workers, out), 1, cwd=folder, log=folder / "log")
    found = json.loads((out / "summary.json").read_text())["cells"]
    assert [c["state"] for c in found] == ["complete"] * cells
    own = [json.loads((out / "cells" / c["id"] / "summary.json").read_text())["cost"]["seconds"] for c in found]
    return Measured(cost.wall_s, sum(own))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cells", type=int, default=200)
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    os.environ["WANDB_MODE"] = "disabled"  # the environment's word is the last: one from outside would track cells
    print(processes.machine(), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="alphapo-bench-") as scratch:
        folder = Path(scratch)
        (folder / "warm").mkdir()
        sweep(args.workers, args.workers, folder / "warm")  # fills the cache
        few = sweep(args.workers, args.workers, folder)
        many = sweep(args.cells + args.workers, args.workers, folder)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            status = [*line(args.cells + args.workers, args.workers, folder / f"cells-{args.cells + args.workers}")]
            processes.timed([*status, "--status"], 1, cwd=folder)
            took.append(time.perf_counter() - began)
    each = ((many.wall - few.wall) * args.workers - (many.cells - few.cells)) / args.cells
    print("| cells | workers | wall s | cells' own s | engine, ms a cell | --status, s (median of 5) |")
    print("|" + " --- |" * 6)
    print(
        f"| {args.cells} | {args.workers} | {many.wall - few.wall:.1f} | {many.cells - few.cells:.1f} | {1000 * each:.0f} | "
        f"{sorted(took)[2]:.2f} |"
    )


if __name__ == "__main__":
    main()

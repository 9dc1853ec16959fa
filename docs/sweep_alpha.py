"""The README's picture, and what it was made from.

    alphapo sweep alpha --out runs/demo      # or `make demo`
    python docs/sweep_alpha.py runs/demo

Copies the sweep's outcome.png to sweep-alpha.png and writes sweep-alpha.csv beside it: of every alpha the prompts that it
won, drew and lost against the model before training, and the interval that is drawn. tests/docs compares that file with
what the code of today says.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np

from alphapo_cli.storage.atomic import write_atomic
from alphapo_cli.sweep.analysis import analyse, outcomes
from alphapo_cli.sweep.directory import SweepDirectory

HERE = Path(__file__).parent
COLUMNS = ("sweep", "alpha", "won", "drawn", "lost", "value", "low", "high", "over", "verdict")


def rows(directory: SweepDirectory) -> list[list[object]]:
    """One row a point, in the order of `COLUMNS`; one seed each."""
    record, found = directory.record(), analyse(directory)
    if record is None or found.metric is None:
        raise SystemExit(f"{directory.path}: no complete sweep")
    made: list[list[object]] = []
    for point, estimate, advantage in zip(found.points, found.estimates, found.advantages, strict=True):
        if len(point.members) != 1 or estimate is None:
            raise SystemExit(f"{directory.path}: {point.label} needs one complete cell")
        values = outcomes(directory.cell(point.cells[0]["id"]), found.metric)
        counts = [int(np.sum(values == share)) for share in (1.0, 0.5, 0.0)]
        verdict = "" if advantage is None else advantage.verdict
        bounds = [f"{x:.6f}" for x in (estimate.value, estimate.low, estimate.high)]
        made.append([record["hash"], point.alpha, *counts, *bounds, estimate.over, verdict])
    return made


def main(sweep: Path) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows(SweepDirectory(sweep))])
    write_atomic(HERE / "sweep-alpha.csv", text.getvalue().encode())
    write_atomic(HERE / "sweep-alpha.png", (sweep / "outcome.png").read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""bf16 autocast against float32: the same runs in both, their displacement curves and the signs of their margins.

    python benchmarks/precision.py                                   # the embedded world
    python benchmarks/precision.py --data harmless-base-test.jsonl.gz # a small model of its own, first fitted by SFT

Signs are those of the reward margin of each probe pair, of the start (same weights, two precisions) and of the end of
training (two runs). Pairs whose float32 margin is within bf16's own error say nothing; how large the margins are where
signs differ is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import processes

CURVES = ("displacement/chosen", "displacement/rejected", "displacement/share_chosen_down")
Rows = list[dict[str, Any]]


def main() -> None:
    args = parser().parse_args()
    print(processes.machine(), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="alphapo-bench-") as scratch:
        folder = Path(scratch)
        source = ["data=glassbox"]
        if args.data:
            source = ["data=jsonl", f"data.path={args.data.resolve()}", "data.max_length=320", "trainer=small"]
            start = train(
                folder, "start", *source, "model=from_scratch", "objective=sft", f"trainer.max_steps={args.sft_steps}"
            )
            source += [f"model.path={start}", "trainer.learning_rate=1e-4", "trainer.per_device_train_batch_size=8"]
        print("| objective | curve | float32, end | bf16, end | largest gap on the way |\n|" + " --- |" * 5)
        signs = []
        for objective in args.objectives.split(","):
            line = [*source, f"objective={objective}", f"trainer.max_steps={args.steps}"]
            wide, narrow = (
                train(folder, f"{objective}-{flag}", *line, f"trainer.bf16={flag}") for flag in ("false", "true")
            )
            a, b = (read(run / "metrics.jsonl") for run in (wide, narrow))
            for curve in CURVES:
                both = [(x[curve], y[curve]) for x, y in zip(a, b, strict=True) if x.get(curve) is not None]
                gap = max(abs(x - y) for x, y in both)
                print(f"| {objective} | {curve} | {both[-1][0]:.4f} | {both[-1][1]:.4f} | {gap:.4f} |", flush=True)
            signs.append(agreement(objective, *(read(run / "probe.jsonl") for run in (wide, narrow))))
        print("\n| objective | when | pairs | same sign of the margin | largest float32 margin of another sign |")
        print("|" + " --- |" * 5)
        print("\n".join(row for rows in signs for row in rows))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="preference pairs instead of the embedded world")
    p.add_argument("--objectives", default="alphapo,dpo")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--sft-steps", type=int, default=100, help="with --data")
    return p


def train(folder: Path, name: str, *line: str) -> Path:
    """A run's directory."""
    command = [sys.executable, "-m", "alphapo_cli", "train", *line, f"run.name={name}", "tracking.mode=disabled"]
    processes.timed(command, 1, folder, folder / f"{name}.log")
    return folder / "runs" / name


def read(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


def agreement(objective: str, wide: Rows, narrow: Rows) -> list[str]:
    """A table row for the first and the last reading of the probe."""
    rows = []
    for when, step in (("start", 0), ("end", wide[-1]["step"])):
        a, b = (
            {r["pair"]: r["rewards/chosen"] - r["rewards/rejected"] for r in rows_ if r["step"] == step}
            for rows_ in (wide, narrow)
        )
        signed = [pair for pair in a if a[pair] or b[pair]]  # at the start a policy is its own reference: no sign
        other = [abs(a[pair]) for pair in signed if np.sign(a[pair]) != np.sign(b[pair])]
        share = f"{1 - len(other) / len(signed):.1%} | {max(other, default=0):.4f}" if signed else "- | -"
        rows.append(f"| {objective} | {when} | {len(signed)} | {share} |")
    return rows


if __name__ == "__main__":
    main()

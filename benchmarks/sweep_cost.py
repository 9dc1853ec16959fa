"""What a sweep of 13 alphas costs: one `alphapo sweep`, against one TRL process for every alpha.

    python benchmarks/sweep_cost.py                     # short/8k, 100 steps a cell; TRL timed on 3 alphas, times 13/3
    python benchmarks/sweep_cost.py --cases short/32k --trl-runs 13

Whole processes: start-up, reading and tokenising the data, training, probe, tracking (offline), saved models. As many TRL
processes run at a time as the sweep has workers. Of TRL, what is scaled is the mean of the runs that were timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import material
import processes
import trainers

ALPHAS = [-1 + i / 4 for i in range(13)]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", default="short/8k")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--steps", type=int, default=100, help="optimizer steps of 8 pairs, each cell")
    p.add_argument("--trl-runs", type=int, default=3, help="alphas that TRL is timed on; its costs are scaled to 13")
    p.add_argument("--data", type=Path, help="dialogues instead of generated ones")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    print(processes.machine(), file=sys.stderr)
    print(f"| case | steps | CPU-s of {args.trl_runs} TRL runs | scaled to 13 | alphapo sweep | ratio | wall ratio |")
    print("|" + " --- |" * 7)
    rows = []
    if "long" in args.cases:
        raise SystemExit("--cases: whole processes read pairs as they are; there are short/8k and short/32k")
    for name in args.cases.split(","):
        row = compare(args, name)
        rows.append(row)
        print(
            f"| {name} | {args.steps} | {row['trl_timed_cpu_s']:.0f} | {row['trl_cpu_s']:.0f} | {row['our_cpu_s']:.0f} | "
            f"{row['cpu_ratio']:.2f} | {row['wall_ratio']:.2f} |",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(args: argparse.Namespace, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, pairs = material.write(folder, material.texts(args.data, 2303), material.case(name).vocabulary)
        workers = max(1, (os.cpu_count() or 1) // args.threads)
        line = [
            "sweep", "alpha", f"launcher.workers={workers}", *trainers.OURS["alphapo"], f"objective.shape.alpha={','.join(map(str, ALPHAS))}",
            f"model.path={model}", "data=jsonl", f"data.path={pairs}", "data.max_length=1024",
            f"trainer.per_device_train_batch_size={trainers.BATCH}", "trainer.gradient_accumulation_steps=1",
            f"trainer.max_steps={args.steps}", f"trainer.threads={args.threads}", "trainer.use_cpu=true",
            f"trainer.learning_rate={trainers.RATE}",
        ]  # fmt: skip
        line.remove("objective.shape.alpha=0.25")
        log = folder / "ours.log"
        ours = processes.timed(
            [sys.executable, "-m", "alphapo_cli", *line], args.threads, folder, log, folder / "cache"
        )
        timed = [ALPHAS[round(i * 12 / max(1, args.trl_runs - 1))] for i in range(args.trl_runs)]

        def run(alpha: float) -> processes.Cost:
            out = folder / f"trl{alpha}"
            command = [
                sys.executable, str(processes.HERE / "trl_run.py"), str(model), str(pairs), str(out), str(args.steps),
                "alphapo", "float32", str(args.threads), str(alpha),
            ]  # fmt: skip
            return processes.timed(command, args.threads, folder, folder / f"trl{alpha}.log")

        with ThreadPoolExecutor(workers) as pool:
            costs = list(pool.map(run, timed))
    cpu, wall = sum(c.cpu_s for c in costs), sum(c.wall_s for c in costs)
    scale = len(ALPHAS) / len(costs)
    return {
        "case": name, "threads": args.threads, "steps": args.steps, "trl_timed_cpu_s": cpu, "trl_cpu_s": scale * cpu,
        "our_cpu_s": ours.cpu_s, "cpu_ratio": scale * cpu / ours.cpu_s, "wall_ratio": scale * wall / workers / ours.wall_s,
        "trl_runs": len(costs), "our_wall_s": ours.wall_s, "trl_wall_s": scale * wall / workers,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Pairs of a model's own answers against pairs of others' answers, at matched margins, in the embedded world.

    python benchmarks/on_policy.py --out build/on_policy        # 18 trainings: about half an hour on two cores

Own pairs: best against worst of eight answers of the base model to 1,024 training instructions, by the true reward. Others':
the world's pairs without label noise. Margins differ (about 6 against 3), and a wider margin alone teaches more: the pairs
of both kinds are drawn so that each has equally many in every half point of margin. Three alphas of objective=alphapo, three
seeds; displacement of chosen answers on held-out pairs, and the true win rate of 512 answers against the base model's, with
95 % intervals over seeds (Student's t), and of the differences own - others of the same seed. What is there is not made again.
It leaves the tables on stdout, on_policy.json and on_policy.png.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import GlassboxConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.plots import style

ALPHAS, SEEDS = (-0.5, 0.0, 0.5), (0, 1, 2)
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t by degrees of freedom
BIN = 0.5  # of the margin
Row = dict[str, Any]


def alphapo(folder: Path, *line: str) -> Path:
    """Run a command in `folder`; the directory that it names."""
    ran = subprocess.run(
        [sys.executable, "-m", "alphapo_cli", *line], cwd=folder, text=True, capture_output=True, check=False
    )
    if ran.returncode != 0:
        raise SystemExit(f"{' '.join(line)}: {ran.stderr.strip()}")
    return Path(ran.stdout.splitlines()[0])


def others(count: int) -> list[Row]:
    """The world's own pairs, the better answer chosen."""
    rows = []
    for pair in world.make_pairs(GlassboxConfig(pairs=count, label_temperature=0.0)):
        margin = pair.columns["score_chosen"] - pair.columns["score_rejected"]
        if margin > 0:
            rows.append({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "margin": margin})
    return rows


def matched(first: Sequence[Row], second: Sequence[Row], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """As many rows of both in every bin of the margin as the one that has fewer holds there."""
    bins: list[dict[int, list[Row]]] = []
    for rows in (first, second):
        found: dict[int, list[Row]] = defaultdict(list)
        for row in rng.sample(list(rows), len(rows)):
            found[math.floor(row["margin"] / BIN)].append(row)
        bins.append(found)
    kept: tuple[list[Row], list[Row]] = ([], [])
    for place in sorted(bins[0].keys() & bins[1].keys()):
        count = min(len(found[place]) for found in bins)
        for rows, found in zip(kept, bins, strict=True):
            rows += found[place][:count]
    return kept


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(folder: Path, data: Path, held_out: Path, alpha: float, seed: int, base: Path) -> tuple[float, float]:
    """(displacement of chosen answers in nats per token, true win rate) of one training, which is kept."""
    kept = folder / f"{data.stem}-{alpha}-{seed}.json"
    if kept.is_file():
        down, win = json.loads(kept.read_text())
        return float(down), float(win)
    run = alphapo(
        folder, "train", "data=jsonl", f"data.path={data}", f"data.eval_path={held_out}", "model=glassbox",
        "trainer.learning_rate=8e-4", "trainer.num_train_epochs=2", "trainer.per_device_train_batch_size=32",
        "trainer.threads=1", "trainer.use_cpu=true", "data.max_length=64", "tracking.mode=disabled",
        f"objective.shape.alpha={alpha}", f"seed={seed}",
    )  # fmt: skip
    answers = alphapo(folder, "generate", str(run), "data=glassbox", "data.limit=512", "generation=transformers")
    judged = alphapo(folder, "eval", str(answers), "--reference", str(base), "--judge", "glassbox")
    results = json.loads((judged / "results.json").read_text())
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    found = metrics["displacement/chosen"], results["true_win_rate"]
    kept.write_text(json.dumps(found))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    n = len(values)
    return statistics.fmean(values), T_975[n - 1] * statistics.stdev(values) / math.sqrt(n)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Both numbers by alpha: every seed, and the mean with its interval."""
    figure, axes = style.new_figure(1, 2, 3.0, "A model's own pairs and others', at the same margins")
    panels = (
        ("displacement", "chosen answers, held out", "nats per token"),
        ("true_win_rate", "true win rate", "against the start"),
    )
    for ax, (name, title, unit) in zip(axes, panels, strict=True):
        for kind, colour, aside in (("own", style.GREEN, -0.02), ("others", style.GREY, 0.02)):
            own = [row for row in rows if row["pairs"] == kind]
            at = [row["alpha"] + aside for row in own]
            for x, row in zip(at, own, strict=True):
                ax.plot(
                    [x] * len(row[f"{name}_seeds"]), row[f"{name}_seeds"], "o", color=colour, markersize=2.5, alpha=0.5
                )
            ax.errorbar(
                at, [row[name] for row in own], [row[f"{name}_pm"] for row in own], fmt="o-", color=colour, capsize=3,
                label=f"{kind}: 3 seeds, mean and 95 % interval",
            )  # fmt: skip
        ax.set_xticks(ALPHAS)
        ax.axhline(
            {"displacement": 0.0, "true_win_rate": 0.5}[name], color=style.GREY, linewidth=0.8, linestyle=(0, (4, 3))
        )
        style.panel(ax, title, unit, "alpha")
    style.legend(axes[0], loc="best")
    style.save(figure, path)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("build/on_policy"))
    p.add_argument("--prompts", type=int, default=1024)
    args = p.parse_args()
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pairs = alphapo(
        folder,
        "pairs",
        "generation.samples=8",
        f"data.limit={args.prompts}",
        "generation=transformers",
        "thin.cut=keep",
    )
    own = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    own, other = matched(own, others(8 * args.prompts), random.Random(0))
    print(
        f"{len(own)} pairs of each kind, mean margin {statistics.fmean(row['margin'] for row in own):.2f}",
        file=sys.stderr,
    )
    files = {"own": write(folder / "own.jsonl", own), "others": write(folder / "others.jsonl", other)}
    probe = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in world.probe_pairs(256, GlassboxConfig(label_temperature=0.0))
    ]
    held_out = write(folder / "held_out.jsonl", probe)
    base = alphapo(folder, "generate", "data.limit=512", "generation=transformers", "seed=1000")
    rows: list[Row] = []
    for alpha in ALPHAS:
        seeds = {
            kind: [outcome(folder, data, held_out, alpha, seed, base) for seed in SEEDS] for kind, data in files.items()
        }
        for kind, found in seeds.items():
            rows.append({"alpha": alpha, "pairs": kind, **numbers(found)})
        apart = [
            (own[0] - other[0], own[1] - other[1]) for own, other in zip(seeds["own"], seeds["others"], strict=True)
        ]
        rows.append({"alpha": alpha, "pairs": "own - others", **numbers(apart)})
        for row in rows[-3:]:
            print(
                f"| {alpha:g} | {row['pairs']} | {row['displacement']:+.3f} ± {row['displacement_pm']:.3f} "
                f"| {row['true_win_rate']:.3f} ± {row['true_win_rate_pm']:.3f} |", flush=True,
            )  # fmt: skip
    (folder / "on_policy.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(rows, folder / "on_policy.png")


def numbers(found: Sequence[tuple[float, float]]) -> Row:
    """Mean, interval and the seeds themselves of both numbers."""
    row: Row = {}
    for name, values in zip(("displacement", "true_win_rate"), zip(*found, strict=True), strict=True):
        row[name], row[f"{name}_pm"] = interval(values)
        row[f"{name}_seeds"] = list(values)
    return row


if __name__ == "__main__":
    main()

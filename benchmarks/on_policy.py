"""Pairs of a model's own answers against pairs of others' answers, at matched margins, in the embedded world.

    python benchmarks/on_policy.py --out build/on_policy        # 27 trainings: some 25 minutes of a core

Own pairs: best against worst of eight answers of the base model to 1,024 training instructions, by the true reward. Others':
the world's pairs without label noise. Margins differ (about 6 against 3), and a wider margin alone teaches more: the pairs
of both kinds are drawn so that each has equally many in every half point of margin. A third kind, as many of the world's
pairs at random, shows what the margin alone does. Three alphas of objective=alphapo, three seeds; displacement of chosen
answers on held-out pairs, and the true win rate of 512 answers against the base model's. Intervals (95 %): over seeds by
Student's t, of differences of the same seed; of win rates, also over prompts, whose number limits them more. What is there is
not made again. It leaves a table on stdout, on_policy.json and on_policy.png.
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
ANY = "others, any margin"
NAMES = ("displacement", "share_down", "true_win_rate")
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


def mean_margin(rows: Sequence[Row]) -> float:
    return statistics.fmean(row["margin"] for row in rows)


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(folder: Path, data: Path, held_out: Path, alpha: float, seed: int, base: Path) -> Row:
    """One training: displacement of chosen answers in nats per token, the share that fell, who won each prompt."""
    run = alphapo(
        folder, "train", "data=jsonl", f"data.path={data}", f"data.eval_path={held_out}", "model=glassbox",
        "trainer.learning_rate=8e-4", "trainer.num_train_epochs=2", "trainer.per_device_train_batch_size=32",
        "trainer.gradient_accumulation_steps=1", "trainer.threads=1", "trainer.use_cpu=true", "data.max_length=64", "tracking.mode=disabled",
        f"objective.shape.alpha={alpha}", f"seed={seed}",
    )  # fmt: skip
    answers = alphapo(folder, "generate", str(run), "data=glassbox", "data.limit=512", "generation=transformers")
    judged = alphapo(folder, "eval", str(answers), "--reference", str(base), "--judge", "glassbox")
    rows = sorted(json.loads((judged / "annotations.json").read_text()), key=lambda row: str(row["instruction"]))
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    won = [row["preference"] - 1 for row in rows]
    return {
        "displacement": metrics["displacement/chosen"], "share_down": metrics["displacement/share_chosen_down"],
        "true_win_rate": statistics.fmean(won), "won": won,
    }  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    n = len(values)
    return statistics.fmean(values), T_975[n - 1] * statistics.stdev(values) / math.sqrt(n)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Displacement and win rate by alpha: every seed, and the mean with its wider interval."""
    figure, axes = style.new_figure(1, 2, 3.0, "A model's own pairs and others', at the same margins and at any")
    panels = (
        ("displacement", "Displacement of held-out chosen answers", "nats per token"),
        ("true_win_rate", "True win rate", "against the start"),
    )
    for ax, (name, title, unit) in zip(axes, panels, strict=True):
        for kind, colour, aside in (
            ("own", style.GREEN, -0.03),
            ("others", style.CHOSEN, 0.0),
            (ANY, style.GREY, 0.03),
        ):
            own = [row for row in rows if row["pairs"] == kind]
            at = [row["alpha"] + aside for row in own]
            for x, row in zip(at, own, strict=True):
                ax.plot([x] * len(SEEDS), row[f"{name}_seeds"], "o", color=colour, markersize=2.5, alpha=0.5)
            wide = [max(row[f"{name}_pm"], row["over_prompts_pm"] if name == "true_win_rate" else 0.0) for row in own]
            ax.errorbar(
                at,
                [row[name] for row in own],
                wide,
                fmt="o-",
                color=colour,
                capsize=3,
                linewidth=1,
                markersize=4,
                label=kind,
            )
        ax.set_xticks(ALPHAS)
        style.reference_line(ax, {"displacement": 0.0, "true_win_rate": 0.5}[name])
        style.panel(ax, title, unit, "alpha")
    style.legend(axes[0], loc="lower left")
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
    world_pairs = others(8 * args.prompts)
    own, other = matched(own, world_pairs, random.Random(0))
    any_margin = random.Random(1).sample(world_pairs, len(own))
    print(
        f"{len(own)} pairs of each kind, mean margin {mean_margin(own):.2f}, {mean_margin(other):.2f} and "
        f"{mean_margin(any_margin):.2f}",
        file=sys.stderr,
    )
    kinds = {"own": own, "others": other, ANY: any_margin}
    files = {
        kind: write(folder / f"{kind.replace(', ', '-').replace(' ', '-')}.jsonl", of) for kind, of in kinds.items()
    }
    probe = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in world.probe_pairs(256, GlassboxConfig(label_temperature=0.0))
    ]
    held_out = write(folder / "held_out.jsonl", probe)
    base = alphapo(folder, "generate", "data.limit=512", "generation=transformers", "seed=1000")
    rows: list[Row] = []
    for alpha in ALPHAS:
        runs = {kind: [outcome(folder, data, held_out, alpha, n, base) for n in SEEDS] for kind, data in files.items()}
        rows += [{"alpha": alpha, "pairs": kind, **summarised(found)} for kind, found in runs.items()]
        rows.append({"alpha": alpha, "pairs": "own - others", **summarised(runs["own"], runs["others"])})
        for row in rows[-4:]:
            print(
                f"| {alpha:g} | {row['pairs']} | {row['displacement']:+.4f} ± {row['displacement_pm']:.4f} "
                f"| {row['share_down']:.3f} ± {row['share_down_pm']:.3f} | {row['true_win_rate']:.3f} "
                f"± {row['true_win_rate_pm']:.3f} | ± {row['over_prompts_pm']:.3f} |", flush=True,
            )  # fmt: skip
    (folder / "on_policy.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(rows, folder / "on_policy.png")


def summarised(found: Sequence[Row], minus: Sequence[Row] | None = None) -> Row:
    """Means over seeds with their intervals, or those of the differences from other trainings of the same seeds."""
    row: Row = {}
    for name in NAMES:
        values = [one[name] - (minus[n][name] if minus else 0.0) for n, one in enumerate(found)]
        row[name], row[f"{name}_pm"] = interval(values)
        row[f"{name}_seeds"] = values
    prompts = [
        statistics.fmean(shares) for shares in zip(*(difference(one["won"], minus[n]["won"] if minus else None)
                                                     for n, one in enumerate(found)), strict=True)
    ]  # fmt: skip
    row["over_prompts_pm"] = 1.96 * statistics.stdev(prompts) / math.sqrt(len(prompts))
    return row


def difference(won: Sequence[float], other: Sequence[float] | None) -> Sequence[float]:
    return won if other is None else [a - b for a, b in zip(won, other, strict=True)]


if __name__ == "__main__":
    main()

"""Tables and pictures of docs/findings.md, from the two sweeps that it is about.

    alphapo sweep methods --out runs/methods && alphapo sweep alpha_everywhere --out runs/everywhere
    python docs/findings.py runs/methods runs/everywhere

Writes methods.png and alpha-everywhere.png beside this file and prints the tables.

    python docs/findings.py            # correlations with intervals, from the page's own table of all objectives
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from alphapo_cli.plots import style

HERE = Path(__file__).parent
WINS, CHOSEN, REJECTED = "glassbox/true_win_rate", "displacement/chosen", "displacement/rejected"
ACCURACY, RANKING, UP_DOWN = "rewards/accuracies", "ranking/accuracy", "displacement/quadrant/up_down"
DOWN, KL, LENGTH = "displacement/share_chosen_down", "kl/reference", "glassbox/length"

Runs = Sequence[Mapping[str, Any]]  # metrics of the seeds, in order of the seed


# Objectives that are one loss, or nearly, are no independent evidence: intervals resample families, not objectives.
FAMILIES = {
    "dpo": "dpo dmpo tr_dpo cdpo robust_dpo soft_labels rpo_aware_kl r_dpo beta_dpo focalpo h_dpo hinge sampo ld_dpo wpo "
    "bmc dpop dpo_shift dpo_shift_linear tdpo rpo_sft irpo",
    "f-divergence": "chi_po f_dpo_forward_kl f_dpo_js f_dpo_alpha alphapo_ratio",
    "mean ratio": "ln_dpo omni_dpo",
    "mean log-prob": "simpo alphapo alphapo_adaptive cpo_simpo gamma_po alpha_dpo",
    "summed log-prob": "cpo slic",
    "kto, apo": "kto kto_pair kto_constant apo_zero apo_down",
    "bce": "bce bco",
    "nca": "nca_pair nca_list infonca swepo",
    "exo": "exo exo_list rpo_aware_reverse_kl",
    "squared": "ipo cal_dpo rpo_aware_squared",
    "sppo": "sppo_hard sppo_soft",
    "odds": "orpo tempered_orpo asft tempered_asft",
    "sft": "sft",
    "discopop": "discopop",
}
RESAMPLES = 4000
FEW_DOWN = 0.72  # share of chosen answers down, below which every objective beats the start


def main(methods: Path, everywhere: Path) -> None:
    by_method = {key[0]: runs for key, runs in grouped(methods, "objective").items()}
    order = sorted(by_method, key=lambda name: -mean(by_method[name], WINS))
    print(method_table(by_method, order), end="\n\n")
    metrics = (UP_DOWN, DOWN, LENGTH, KL, CHOSEN, REJECTED, RANKING, ACCURACY)
    columns = {m: {name: mean(runs, m) for name, runs in by_method.items()} for m in (WINS, *metrics)}
    print(rank_table(columns), end="\n\n")
    draw_methods(by_method, order, HERE / "methods.png")
    by_alpha = grouped(everywhere, "objective", "objective.shape.alpha")
    for metric in (WINS, CHOSEN, DOWN):
        print(alpha_table(by_alpha, metric), end="\n\n")
    print(gain_table(by_alpha))
    draw_alphas(by_alpha, HERE / "alpha-everywhere.png")


def grouped(sweep: Path, *keys: str) -> dict[tuple[str, ...], Runs]:
    """The seeds' metrics of each combination of values; a cell that is not complete ends it."""
    found: dict[tuple[str, ...], dict[int, Any]] = defaultdict(dict)
    for cell in json.loads((sweep / "summary.json").read_text())["cells"]:
        values = dict(text.split("=", 1) for text in cell["overrides"])
        if cell["state"] != "complete":
            raise SystemExit(f"{sweep}: {' '.join(cell['overrides'])} is {cell['state']}")
        found[tuple(values[key] for key in keys)][int(values["seed"])] = cell["metrics"]
    return {key: [runs[seed] for seed in sorted(runs)] for key, runs in found.items()}


def values(runs: Runs, metric: str) -> list[float]:
    return [run[metric] for run in runs if run[metric] is not None]


def mean(runs: Runs, metric: str) -> float:
    return fmean(values(runs, metric))


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join([row(head), row("---" for _ in head), *map(row, lines)])


def spread(runs: Runs, metric: str, form: str = ".2f") -> str:
    return f"{mean(runs, metric):{form}} ± {stdev(values(runs, metric)):.2f}"


def method_table(methods: Mapping[str, Runs], order: Sequence[str]) -> str:
    head = ("objective", "true win rate", "chosen", "rejected", "share of chosen down", "KL", "length")
    return table(
        head,
        (
            (
                f"`{name}`", spread(runs := methods[name], WINS), f"{mean(runs, CHOSEN):+.2f}",
                f"{mean(runs, REJECTED):+.2f}", f"{mean(runs, DOWN):.2f}", f"{mean(runs, KL):.2f}",
                f"{mean(runs, LENGTH):.1f}",
            )
            for name in order
        ),
    )  # fmt: skip


def ranks(values: Sequence[float]) -> Any:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[place]  # equals share the mean of their ranks


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one of the two does not vary."""
    a, b = ranks(one), ranks(other)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


def correlation(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, float, float]:
    """The rank correlation over objectives, and its 95 % interval: percentiles of resampled families."""
    groups = [[name for name in text.split() if name in one] for text in FAMILIES.values()]
    groups = [group for group in groups if group]
    missing = set(one) - {name for group in groups for name in group}
    if missing:
        raise SystemExit(f"FAMILIES lacks {', '.join(sorted(missing))}")
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        names = [name for k in rng.integers(0, len(groups), len(groups)) for name in groups[k]]
        drawn.append(spearman([one[n] for n in names], [other[n] for n in names]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return spearman(list(one.values()), [other[n] for n in one]), float(low), float(high)


def rank_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Rank correlation of an objective's mean with its true win rate, over all and on both sides of `FEW_DOWN`.

    columns: metric -> objective -> mean over seeds.
    """
    wins, down = columns[WINS], columns[DOWN]
    sides = {
        "all": list(wins),
        f"below {FEW_DOWN:.0%} down": [n for n in wins if down[n] < FEW_DOWN],
        "the others": [n for n in wins if down[n] >= FEW_DOWN],
    }

    def shown(metric: str, names: Sequence[str]) -> str:
        value, low, high = correlation({n: columns[metric][n] for n in names}, wins)
        return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"

    return table(
        ("on the probe, last step", *(f"{side} ({len(names)})" for side, names in sides.items())),
        ((f"`{m}`", *(shown(m, names) for names in sides.values())) for m in columns if m != WINS),
    )


def page_columns(page: Path) -> dict[str, dict[str, float]]:
    """The columns of the page's table of all objectives, rounded as they are there."""
    number = r"([-+]?[\d.]+)"
    line = re.compile(rf"^\| `(\w+)`(?: †)? \| {number} ± [\d.]+" + rf" \| {number}" * 5 + r" \|$", re.MULTILINE)
    keys = (WINS, CHOSEN, REJECTED, DOWN, KL, LENGTH)
    found = line.findall(page.read_text(encoding="utf-8"))
    columns = {key: {row[0]: float(row[k]) for row in found} for k, key in enumerate(keys, start=1)}
    return {key: columns[key] for key in (WINS, DOWN, LENGTH, KL, CHOSEN, REJECTED)}


def axes_of(cells: Mapping[tuple[str, ...], Runs]) -> tuple[list[str], list[str]]:
    """(objectives, alphas in order)."""
    return list(dict.fromkeys(key[0] for key in cells)), sorted({key[1] for key in cells}, key=float)


def alpha_table(cells: Mapping[tuple[str, ...], Runs], metric: str) -> str:
    objectives, alphas = axes_of(cells)
    form = "+.2f" if metric == CHOSEN else ".2f"
    return f"{metric}\n\n" + table(
        ("", *(f"alpha {alpha}" for alpha in alphas)),
        ((f"`{name}`", *(spread(cells[name, alpha], metric, form) for alpha in alphas)) for name in objectives),
    )


def gain_table(cells: Mapping[tuple[str, ...], Runs]) -> str:
    """What each alpha wins over alpha = 0 with the same seed: the mean, and the seeds one by one."""
    objectives, alphas = axes_of(cells)
    others = [alpha for alpha in alphas if float(alpha) != 0]
    zero = next(alpha for alpha in alphas if float(alpha) == 0)

    def gain(name: str, alpha: str) -> str:
        pairs = zip(values(cells[name, alpha], WINS), values(cells[name, zero], WINS), strict=True)
        gains = [now - before for now, before in pairs]
        return f"{fmean(gains):+.2f} ({', '.join(f'{g:+.2f}' for g in gains)})"

    return "gain over alpha 0\n\n" + table(
        ("", *(f"alpha {alpha}" for alpha in others)),
        ((f"`{name}`", *(gain(name, alpha) for alpha in others)) for name in objectives),
    )


def draw_methods(methods: Mapping[str, Runs], order: Sequence[str], file: Path) -> None:
    title = f"{len(order)} objectives at their defaults in the embedded world, three seeds"
    figure, (left, right) = style.new_figure(1, 2, 0.9 + 0.165 * len(order), title, sharey=True)
    places = range(len(order))
    for metric, ax, colour, marker, label in (
        (WINS, left, style.GREEN, "o", "a seed"),
        (CHOSEN, right, style.CHOSEN, "o", "chosen"),
        (REJECTED, right, style.REJECTED, "s", "rejected"),
    ):
        for place, name in zip(places, order, strict=True):
            seen = values(methods[name], metric)
            ax.plot([min(seen), max(seen)], [place, place], color=colour, linewidth=0.8, alpha=0.6)
            ax.plot(seen, [place] * len(seen), marker, color=colour, markersize=2.8, linestyle="", label=label)
            label = "_"
    for ax, neutral, text, unit in (
        (left, 0.5, "True win rate against the start", "share of 256 prompts won"),
        (right, 0.0, "Displacement of held-out pairs", "nats per token since step 0"),
    ):
        ax.axvline(neutral, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        style.panel(ax, text, "", unit)
        style.legend(ax, loc="lower right" if ax is left else "lower left")
    left.set_yticks(places, order, fontsize=6.5)
    left.set_ylim(len(order) - 0.4, -0.6)
    style.save(figure, file)


def draw_alphas(cells: Mapping[tuple[str, ...], Runs], file: Path) -> None:
    objectives, alphas = axes_of(cells)
    title = "The power shape under six objectives in the embedded world, three seeds"
    figure, axes = style.new_figure(2, len(objectives), 4.4, title, sharex=True, sharey="row")
    for i, name in enumerate(objectives):
        for ax, metric, colour in (
            (axes[i], WINS, style.GREEN),
            (axes[i + len(objectives)], CHOSEN, style.CHOSEN),
        ):
            at = [float(alpha) for alpha in alphas]
            ax.plot(at, [mean(cells[name, alpha], metric) for alpha in alphas], color=colour, linewidth=1.4)
            for place, alpha in zip(at, alphas, strict=True):
                seen = values(cells[name, alpha], metric)
                ax.plot([place] * len(seen), seen, "o", color=colour, markersize=2.6)
            style.reference_line(ax, 0.5 if metric == WINS else 0.0)
            first = i == 0
            if metric == WINS:
                style.panel(ax, name, "true win rate" if first else "")
            else:
                style.panel(ax, "", "chosen, nats per token" if first else "", "alpha")
            ax.set_xticks(at, ["-.5", "0", "", ".5", "1"] if at == [-0.5, 0, 0.25, 0.5, 1] else alphas)
    style.save(figure, file)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(rank_table(page_columns(HERE / "findings.md")))
    else:
        main(*map(Path, sys.argv[1:]))

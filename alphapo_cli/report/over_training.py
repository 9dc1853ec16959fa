"""What `eval.at` found, as a table of a page: the outcome of a run's models after several fractions of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.report.collect import Sweep, number
from alphapo_cli.report.numbers import titled
from alphapo_cli.runtime.wording import level, rate

HEADS = ("run", "step", "of training", "win rate", "length-controlled", "KL to the reference", "chosen", "rejected")
_RATES = ("eval/win_rate", "eval/length_controlled_winrate")
_PROBE = ("kl/reference", "displacement/chosen", "displacement/rejected")


def over_training(sweep: Sweep) -> tuple[list[tuple[str, ...]], str]:
    """The rows of all runs of a page.

    Args:
        sweep: the runs.

    Returns:
        Texts in the order of `HEADS`, none where no run was evaluated at several steps; and the level of their intervals.
    """
    found, shown = [], []
    for cell in sweep.cells:
        seed = "" if cell.seed is None else f", seed {cell.seed}"
        for row in cell.run.outcome().get("over_training") or ():
            if isinstance(row, Mapping):
                shown.append(row)
                found.append((f"{titled(sweep.points[cell.point].label)}{seed}", *_texts(row)))
    return found, level(shown)


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    metrics, probe, ends = (row.get(name) or {} for name in ("metrics", "probe", "intervals"))
    fraction, n = number(row.get("fraction")), number(metrics.get("eval/n_total"))
    rates = [
        "-"
        if (value := number(metrics.get(key))) is None
        else rate(value, n, tuple(ends[key]) if key in ends else None)
        for key in _RATES
    ]
    moved = ["-" if (value := number(probe.get(key))) is None else f"{value:.3f}" for key in _PROBE]
    return (str(row.get("step")), "-" if fraction is None else f"{fraction:.0%}", *rates, *moved)

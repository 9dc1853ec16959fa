"""The picture of one evaluation: both win rates with their intervals, and the win rate by length difference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alphapo_cli.plots import style

_WIDTH = 34  # characters of a name in the title


ALPACA_EVAL = (("win rate", "win_rate"), ("length-\ncontrolled", "length_controlled_winrate"))  # (label, key)


def evaluation_picture(
    results: Mapping[str, Any], path: str | os.PathLike[str], rates: Sequence[tuple[str, str]] = ALPACA_EVAL
) -> None:
    """Save `evaluation_figure` as a PNG at `path`."""
    style.save(evaluation_figure(results, rates), path)


def evaluation_figure(results: Mapping[str, Any], rates: Sequence[tuple[str, str]] = ALPACA_EVAL) -> Figure:
    """Draw two win rates, with intervals, and the win rate by length difference.

    Args:
        results: the object of results.json; the interval of a rate stands under its key with `_interval`.
        rates: label and key of both rates.

    Returns:
        The figure.
    """
    model, reference = _shortened(str(results["generator"]), str(results["reference"]))
    title = f"{model} against {reference}, judged by {_start(str(results['annotator']))}"
    figure, (bars, bins) = style.new_figure(1, 2, 2.7, title, gridspec_kw={"width_ratios": [2, 3]})
    _rates(bars, results, rates)
    _bins(bins, results)
    return figure


def _rates(ax: Axes, results: Mapping[str, Any], shown: Sequence[tuple[str, str]]) -> None:
    """Bars of both win rates; a rate that is unavailable is a note."""
    for x, ((label, key), colour) in enumerate(zip(shown, (style.INK, style.BLUE), strict=True)):
        rate, bounds = results.get(key), results.get(f"{key}_interval")
        if rate is None:
            ax.text(x, 50, f"{label}:\nunavailable", ha="center", va="bottom", color=style.GREY, fontsize=8)
            continue
        ax.bar(x, rate, width=0.55, color=colour, zorder=2)
        low, high = bounds or (rate, rate)
        ax.errorbar(
            x, rate, yerr=[[max(rate - low, 0)], [max(high - rate, 0)]], color=style.VERMILLION, capsize=4, zorder=3
        )
        ax.text(x, max(high, rate) + 2, f"{rate:.1f}", ha="center", fontsize=8, color=style.INK)
    style.reference_line(ax, 50.0)
    ax.set_xticks([0, 1], [label for label, _ in shown])
    ax.set_xlim(-0.6, 1.6)
    ax.set_ylim(0, 108)
    style.panel(ax, f"Win rate, {_level(results)}", "percent")


def _level(results: Mapping[str, Any]) -> str:
    return f"{100 * results['confidence']:.10g} % over {results.get('intervals_over', 'instructions')}"


def _bins(ax: Axes, results: Mapping[str, Any]) -> None:
    """Win rate by bin of the length difference, with intervals."""
    bins = results["length_bins"]
    for x, b in enumerate(bins):
        low, high = b.get("interval") or (b["win_rate"], b["win_rate"])
        error = [[max(b["win_rate"] - low, 0)], [max(high - b["win_rate"], 0)]]
        ax.errorbar(x, b["win_rate"], yerr=error, fmt="o", markersize=4, color=style.INK, ecolor=style.GREY, capsize=3)
    if len(bins) > 1:
        ax.plot(range(len(bins)), [b["win_rate"] for b in bins], color=style.INK, linewidth=1.2)
    style.reference_line(ax, 50.0)
    labels = [f"{b['shortest']:+d}\nto {b['longest']:+d}" for b in bins]
    ax.set_xticks(range(len(bins)), labels)
    ax.set_xlim(-0.5, max(len(bins) - 0.5, 0.5))
    ax.set_ylim(0, 108)
    level = f", {_level(results)}" if any(b.get("interval") for b in bins) else ""
    style.panel(ax, f"Win rate by length difference{level}", "percent", "characters more than the reference")


def _shortened(model: str, reference: str) -> tuple[str, str]:
    """Both names cut to the title's width, at the end or else at the beginning, so that they stay different."""
    ways = ((_start(model), _start(reference)), (_end(model), _end(reference)))
    return next((pair for pair in ways if pair[0] != pair[1]), (model, reference))


def _start(name: str) -> str:
    return name if len(name) <= _WIDTH else name[: _WIDTH - 3] + "..."


def _end(name: str) -> str:
    return name if len(name) <= _WIDTH else "..." + name[3 - _WIDTH :]

"""What is said of a sweep: the best point, and whether it can be told from alpha = 0.

Three verdicts: distinguishable, not distinguishable, and undecided, where too few seeds speak for a difference. Where the
best point is alpha = 0 itself nothing is compared, and the verdict says that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.runtime.wording import rate
from alphapo_cli.sweep.analysis import Analysis, tied_best
from alphapo_cli.sweep.collapse import ADVISED, unseen
from alphapo_cli.sweep.intervals import DISTINGUISHABLE, NOT, PROMPTS, SEEDS, UNDECIDED, Estimate
from alphapo_cli.sweep.record import JUDGED, WIN_RATE
from alphapo_cli.sweep.seeds_needed import MOST, POWER

ACCURACY = "rewards/accuracies"
_METRIC_NAMES = {
    JUDGED: "win rate by the judge",
    WIN_RATE: "true win rate against the start",
    ACCURACY: "held-out preference accuracy",
}
BASELINE = "alpha = 0 itself"  # the verdict where the best point is what the others are compared with
_SURE = 0.05  # a share of collapses that may be left unsaid


def find_best(analysis: Analysis) -> dict[str, Any] | None:
    """The `best` object of summary.json; None if no cell is complete."""
    if analysis.best is None or analysis.metric is None:
        return None
    best = analysis.points[analysis.best]
    advantage = analysis.advantage
    verdict = BASELINE if best.alpha == 0.0 else None if advantage is None else advantage.verdict
    own = analysis.estimates[analysis.best]
    return {
        "id": best.cells[0]["id"],
        "overrides": best.cells[0]["overrides"],
        "metric": analysis.metric,
        "value": best.mean(analysis.metric),
        "value_interval": None if own is None else [own.low, own.high],
        "value_over": None if own is None else rows_of(analysis.metric, own.over),
        "advantage_over_alpha_0": None if advantage is None else advantage.value,
        "interval": None if advantage is None else [advantage.low, advantage.high],
        # True or false where that is decided; `verdict` has the three values, and that of alpha = 0 itself.
        "distinguishable": verdict == DISTINGUISHABLE if verdict in (DISTINGUISHABLE, NOT) else None,
        "verdict": verdict,
        "interval_over": None if advantage is None else rows_of(analysis.metric, advantage.over),
        "seeds": None if advantage is None else advantage.seeds,
        "seeds_needed": None if analysis.needed is None else analysis.needed.seeds,
    }


def collapses(analysis: Analysis) -> list[dict[str, Any]]:
    """The `collapsed` list of summary.json: cells far below the other seeds of their point."""
    found = []
    for one in analysis.collapses:
        cell = next(c for c in analysis.points[one.point].cells if c["point"].get("seed") == one.seed)
        found.append({"id": cell["id"], "overrides": cell["overrides"], "value": one.value})
    return found


def verdict(analysis: Analysis, best: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `verdict` of summary.json.

    Args:
        analysis: of the sweep.
        best: as `find_best` returns it.

    Returns:
        outcome: the verdict on the best point against alpha = 0, "not compared" where there is no such point or no
        interval, or "nothing complete"; sentences, the weightiest first; and the cells that they are about: best, and its control.
    """
    if best is None or analysis.best is None:
        return {"outcome": "nothing complete", "sentences": [sentence(analysis, best)], "best": None, "control": None}
    told = [_best(analysis, best), _comparison(analysis, best), _collapsed(analysis), _advice(analysis)]
    control = analysis.controls[analysis.best]
    cells = [] if control is None else analysis.points[control].cells
    return {
        "outcome": best["verdict"] or "not compared",
        "sentences": [text for text in told if text],
        "best": best["id"],
        "control": cells[0]["id"] if cells else None,
    }


def sentence(analysis: Analysis, best: Mapping[str, Any] | None) -> str:
    """The comparison as text: the best point, its ties, its advantage over alpha = 0, collapses, and seeds to add."""
    if best is None or analysis.best is None:
        return "No cell is complete, so there is nothing to compare."
    said = [_best(analysis, best), _comparison(analysis, best), _collapsed(analysis), _advice(analysis)]
    return " ".join(text for text in said if text)


def _best(analysis: Analysis, best: Mapping[str, Any]) -> str:
    found, at = analysis.points, analysis.best
    where = " ".join(o for o in best["overrides"] if not o.startswith("seed="))
    name = _METRIC_NAMES.get(best["metric"], best["metric"])
    if not where:  # seeds alone are swept
        return f"The {name} is {_rated(analysis, at or 0)}, the mean of one configuration's seeds."
    others = [found[k].label for k in tied_best(found, best["metric"]) if k != at]
    tie = f", tied with {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''}" if others else ""
    return f"Best {name}: {_rated(analysis, at or 0)}, at {where} (best of {_compared(analysis)}{tie})."


def _rated(analysis: Analysis, at: int) -> str:
    """A point's outcome as `75 % [26, 100], n = 256 prompts and 2 seeds`, with its own interval."""
    estimate = analysis.estimates[at]
    if estimate is None or not analysis.prompts:
        value = rate(analysis.points[at].mean(analysis.metric or "") or 0.0, None)
        one = rows_of(analysis.metric, PROMPTS).removesuffix("s")
        return f"{value}, n = 1 {one}" if analysis.prompts == 1 else value
    rows = rows_of(analysis.metric, PROMPTS)
    seeds = f" and {estimate.seeds} seed{'s' if estimate.seeds > 1 else ''}" if estimate.over == SEEDS else ""
    # Value, interval and number of the same cells: those whose outcome can be read.
    return rate(estimate.value, analysis.prompts, (estimate.low, estimate.high)) + f" {rows}{seeds}"


def _comparison(analysis: Analysis, best: Mapping[str, Any]) -> str:
    at = analysis.best or 0
    if all(o.startswith("seed=") for o in best["overrides"]):
        return ""
    advantage, control = analysis.advantage, analysis.controls[at]
    if analysis.points[at].alpha == 0.0:
        return f"That is {BASELINE}."
    if control is None:
        begun = any(p.alpha == 0.0 and p.series == analysis.points[at].series for p in analysis.points)
        return (
            "No alpha = 0 cell to compare with is complete." if begun else "There is no alpha = 0 cell to compare with."
        )
    if advantage is None:
        return f"It cannot be compared with alpha = 0: {_obstacle(analysis)}."
    words = {
        DISTINGUISHABLE: "It is distinguishable from alpha = 0",
        NOT: "It is not distinguishable from alpha = 0",
        UNDECIDED: "Whether it differs from alpha = 0 is undecided",
    }
    figures = f"advantage {points_of(advantage.value)} points, 95 % interval {interval_of(advantage)}"
    return f"{words[advantage.verdict]}: {figures} {_over(analysis, advantage)}."


def _obstacle(analysis: Analysis) -> str:
    """Why the best point has no interval of its advantage."""
    rows = rows_of(analysis.metric, PROMPTS)
    if analysis.prompts is None:
        return f"what it did on single {rows} cannot be read"
    if analysis.prompts < 2:
        return f"an interval takes two {rows}, and there is one"
    return f"no complete seed of both answered the same {rows}"


def rows_of(metric: str | None, over: str) -> str:
    """What an interval is over, by the name that the rows of the metric have: the probe's are pairs."""
    return over.replace(PROMPTS, "pairs") if metric == ACCURACY else over


def points_of(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.0f}"


def interval_of(estimate: Estimate) -> str:
    """An interval of a difference, in percentage points."""
    return f"[{points_of(estimate.low)}, {points_of(estimate.high)}]"


def _over(analysis: Analysis, advantage: Estimate) -> str:
    """Over what the interval is, and what it allows for."""
    picked = f", corrected for picking the best of {_compared(analysis)}" if _compared(analysis) > 2 else ""
    rows = rows_of(analysis.metric, PROMPTS)
    if advantage.over == PROMPTS:
        return f"of these trained models, over {rows} (paired{picked}; another training may differ by more)"
    if advantage.seeds > 1:
        alike = "" if advantage.seeds > 2 else f"; {_two_seeds(analysis)}"
        return f"over {rows} and {advantage.seeds} seeds (paired{picked}{alike})"
    return f"over {rows} and seeds (paired{picked}; one seed each: training noise is that of the points with several)"


def _two_seeds(analysis: Analysis) -> str:
    """What the training noise of two seeds rests on."""
    compared = (analysis.best, analysis.controls[analysis.best or 0])
    others = any(len(p.cells) > 1 for k, p in enumerate(analysis.points) if k not in compared)
    return "two seeds rest on the other points' training noise" if others else "two seeds tell little of training noise"


def _collapsed(analysis: Analysis) -> str:
    """Which trainings collapsed; of a difference that is told, how many may collapse unseen."""
    found, told = analysis.collapses, analysis.advantage
    if found:
        many: dict[int, list[str]] = {}
        for one in found:
            many.setdefault(one.point, []).append(f"seed {one.seed}: {rate(one.value, None)}")
        named = [f"{len(seeds)} of {len(analysis.points[k].cells)} of {analysis.points[k].label} ({', '.join(seeds)})"
                 for k, seeds in many.items()]  # fmt: skip
        more = f" and {len(named) - 4} more" if named[4:] else ""
        few = any(len(analysis.points[k].cells) < ADVISED for k in many)
        advice = f" Where trainings collapse, take {ADVISED} seeds or more." if few else ""
        return f"Trainings that collapsed: {'; '.join(named[:4])}{more}.{advice}"
    if told is None or told.verdict != DISTINGUISHABLE or unseen(told.seeds) <= _SURE:
        return ""
    return (
        f"None of its {told.seeds} trainings collapsed, "
        f"which can be so by chance where up to {100 * unseen(told.seeds):.0f} % of trainings do."
    )


def _advice(analysis: Analysis) -> str:
    """How many seeds would tell a difference of the size seen."""
    told, needed = analysis.advantage, analysis.needed
    if told is None or told.verdict == DISTINGUISHABLE or told.value == 0.0:
        return ""
    if needed is None:
        return "seed=0,1,2,3,4 would measure training noise." if told.seeds == 1 else ""
    power = f"with {100 * POWER:.0f} % probability"
    noise = f"training noise of s.d. {100 * needed.deviation:.1f} points"
    if needed.by_neighbours:
        noise += " (between neighbouring alphas, taken as independent; seeds would measure it)"
    if needed.seeds is None:
        return f"{MOST} seeds of each would not tell a difference of this size {power} either, at {noise}: add prompts."
    return f"{needed.seeds} seeds of each would tell a difference of this size {power}, at {noise}."


def _compared(analysis: Analysis) -> int:
    return sum(1 for p in analysis.points if p.cells)

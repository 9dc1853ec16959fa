"""Compute the content of results.json from Arena-Hard's verdicts; AlpacaEval's names where they mean the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from alphapo_cli.evaluation.arena_hard.answers import Answer
from alphapo_cli.evaluation.arena_hard.schema import STYLE, ArenaHardStatistics
from alphapo_cli.evaluation.arena_hard.scores import (
    Battles,
    UnavailableError,
    battles,
    fit_style,
    score,
    score_replicates,
)
from alphapo_cli.evaluation.arena_hard.style import Style, count_style, differences
from alphapo_cli.evaluation.arena_hard.verdicts import PairGrades
from alphapo_cli.evaluation.bias import length_bins
from alphapo_cli.evaluation.bootstrap import interval, resample_counts
from alphapo_cli.evaluation.l1_logistic import Array
from alphapo_cli.evaluation.winrate import average_length, percent_interval, win_rates

_GRADES = {(1.0, True): "much_better", (1.0, False): "better", (0.5, False): "tie", (0.0, False): "worse",
           (0.0, True): "much_worse"}  # fmt: skip


def summarise(
    pairs: Sequence[tuple[Answer, Answer]], grades: Sequence[PairGrades], texts: Sequence[str], cfg: ArenaHardStatistics
) -> tuple[dict[str, Any], list[float | None]]:
    """Compute every figure of results.json that follows from the verdicts.

    Args:
        pairs: n (baseline's, model's) judged answers.
        grades: their n grades.
        texts: all answers of the model, judged or not.
        cfg: the statistics settings.

    Returns:
        Figures by name, rates in percent, None if undefined; and the preference of each pair in AlpacaEval's terms.

    Raises:
        ValueError: no pair counts.
    """
    found = battles(grades, cfg.version, cfg.weight)
    counts = resample_counts(len(pairs), cfg.bootstrap, cfg.seed) if cfg.bootstrap and len(pairs) > 1 else None
    preferences = [None if np.isnan(share) else 1.0 + float(share) for share in found.share]
    rates = asdict(win_rates(preferences))
    bounds = None if counts is None else _interval(found, score(found), score_replicates(found, counts), cfg)
    lengths, base_lengths = [len(own.text) for _, own in pairs], [len(base.text) for base, _ in pairs]
    results: dict[str, Any] = {
        "arena_hard/score": score(found),
        "arena_hard/ci": bounds,
        **_styled(pairs, found, counts, cfg),
        "arena_hard/verdicts": _verdict_counts(grades),
        **_positions(grades),
        "arena_hard/by_category": _by_category(pairs, found, counts, cfg),
        **rates,
        "win_rate_interval": percent_interval(found.share, cfg.confidence),
        "avg_length": average_length(texts),
        "confidence": cfg.confidence,
        "n_null": sum(preference is None for preference in preferences),
        "length_bins": [
            asdict(b) for b in length_bins(lengths, base_lengths, found.share, cfg.length_bins, cfg.confidence)
        ],
    }
    return results, preferences


def styles(pairs: Sequence[tuple[Answer, Answer]]) -> tuple[list[Style], list[Style], str]:
    """(baseline's styles, model's styles, unit of length); tokens where every answer's file gives them, else characters."""
    counted = all(answer.tokens is not None for pair in pairs for answer in pair)

    def of(answer: Answer) -> Style:
        return count_style(answer.text, answer.tokens if counted and answer.tokens is not None else len(answer.text))

    return [of(base) for base, _ in pairs], [of(own) for _, own in pairs], "tokens" if counted else "characters"


def _styled(
    pairs: Sequence[tuple[Answer, Answer]], found: Battles, counts: Array | None, cfg: ArenaHardStatistics
) -> dict[str, Any]:
    """The style-controlled score, its interval and `arena_hard/style`."""
    wanted = [name for name in STYLE if name in cfg.style]
    if not wanted:
        return _style_fields(None, None, {"available": False, "reason": "statistics.style=[]"})
    base, own, unit = styles(pairs)
    d = differences(own, base, cfg.version)
    known = found.weight > 0
    varying = [name for name in wanted if np.ptp(d[known, STYLE.index(name)]) > 0]
    constant = [name for name in wanted if name not in varying]
    if not varying:
        return _style_fields(None, None, {"available": False, "reason": "all answers differ alike in style"})
    try:
        fit = fit_style(found, d[:, [STYLE.index(name) for name in varying]], cfg.version, counts)
    except UnavailableError as error:
        return _style_fields(None, None, {"available": False, "reason": str(error)})
    scores = {"equal": fit.at_equal, "mean": fit.at_mean}
    bounds: dict[str, tuple[float, float] | None] = {"equal": None, "mean": None}
    if counts is not None:
        bounds["equal"] = _interval(found, fit.at_equal, fit.equal_replicates, cfg)
        bounds["mean"] = _interval(found, fit.at_mean, fit.mean_replicates, cfg)
    details = {
        "available": True,
        "at": cfg.style_at,
        "length_in": unit,
        "coefficients": dict(zip(varying, fit.coefficients, strict=True)),
        "constant": constant,
        **{f"score_at_{where}_style": value for where, value in scores.items()},
        **{f"ci_at_{where}_style": value for where, value in bounds.items()},
        "ridge": fit.held,
        "resamples_with_ridge": fit.held_replicates,
        "resamples_without_fit": int(np.isnan(fit.equal_replicates).sum()),
    }
    return _style_fields(scores[cfg.style_at], bounds[cfg.style_at], details)


def _interval(found: Battles, rate: float, replicates: Array, cfg: ArenaHardStatistics) -> tuple[float, float] | None:
    """The interval of a score of these battles from its bootstrap."""
    weight = found.weight[found.weight > 0]
    return interval(rate, replicates, len(weight), cfg.confidence, heaviest=float(weight.max() / weight.mean()))


def _style_fields(value: float | None, bounds: tuple[float, float] | None, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "arena_hard/style_controlled_score": value,
        "arena_hard/style_controlled_ci": bounds,
        "arena_hard/style": details,
    }


def _verdict_counts(grades: Sequence[PairGrades]) -> dict[str, int]:
    """How often the model was judged so in either game, and the games without a verdict (`missing`)."""
    said = [game for g in grades for game in ((g.first, g.first_strong), (g.second, g.second_strong))]
    counted = Counter(_GRADES.get(game, "missing") for game in said)
    return {name: counted[name] for name in [*_GRADES.values(), "missing"]}


def _positions(grades: Sequence[PairGrades]) -> dict[str, Any]:
    """Whether the order of the answers decided.

    Args:
        grades: of all pairs; those with one verdict are left out.

    Returns:
        `inconsistent`: share of pairs whose two verdicts do not name the same winner, a tie being one; `reversed`: share
        of pairs that the model won in one order and lost in the other; `first_shown_share`: mean share of the win of the
        answer that was shown first. None without pairs.
    """
    both = [(g.first, g.second) for g in grades if not np.isnan(g.first) and not np.isnan(g.second)]
    n = len(both)
    if not n:
        return {"arena_hard/inconsistent": None, "arena_hard/reversed": None, "arena_hard/first_shown_share": None}
    return {
        "arena_hard/inconsistent": sum(a != b for a, b in both) / n,
        "arena_hard/reversed": sum(abs(a - b) == 1.0 for a, b in both) / n,
        "arena_hard/first_shown_share": sum(1.0 - a + b for a, b in both) / (2 * n),
    }


def _by_category(
    pairs: Sequence[tuple[Answer, Answer]], found: Battles, counts: Array | None, cfg: ArenaHardStatistics
) -> dict[str, Any]:
    """The score of each category; empty where there is only one."""
    categories = np.array([own.category or "" for _, own in pairs])
    names = list(dict.fromkeys(categories.tolist()))
    if len(names) < 2:
        return {}
    rows = {}
    for name in names:
        inside = (categories == name) & (found.weight > 0)
        part = Battles(np.where(inside, found.weight, 0.0), found.target, found.share)
        n, rate, bounds = int(inside.sum()), None, None
        if n:
            rate = score(part)
            if counts is not None:
                bounds = _interval(part, rate, score_replicates(part, counts), cfg)
        rows[name] = {"score": rate, "ci": bounds, "n": n}
    return rows

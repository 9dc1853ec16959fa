"""Compute the content of results.json from annotations, by AlpacaEval's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alphapo_cli.evaluation import length_controlled as lc
from alphapo_cli.evaluation.bias import length_bins
from alphapo_cli.evaluation.bootstrap import deviation, interval, resample_counts
from alphapo_cli.evaluation.formats import Annotation
from alphapo_cli.evaluation.l1_logistic import Array
from alphapo_cli.evaluation.schema import StatisticsConfig
from alphapo_cli.evaluation.winrate import average_length, percent_interval, shares, win_rates
from alphapo_cli.runtime.statistics.bounded_mean import variance_ratio

OVER = "instructions"  # what the intervals are over; the judge's and the model's own randomness is part of each row


@dataclass(frozen=True)
class LengthControl:
    """Inputs of the length-controlled rate besides the annotations: [n] difficulty of each row, and the gamed rows."""

    difficulty: Array
    gamed: lc.Gamed


def summarise(
    rows: Sequence[Annotation], outputs: Sequence[str], control: LengthControl | str, cfg: StatisticsConfig
) -> dict[str, Any]:
    """Compute every figure of results.json that follows from the annotations.

    Args:
        rows: n annotations.
        outputs: all outputs of the model, judged or not.
        control: inputs of the length-controlled rate, or the reason why it is unavailable.
        cfg: the statistics settings.

    Returns:
        Figures by name; rates and standard errors in percent, None if undefined.

    Raises:
        ValueError: no row has a judgement.
    """
    preferences = [row.preference for row in rows]
    p = shares(preferences)
    counts = resample_counts(len(rows), cfg.bootstrap, cfg.seed) if cfg.bootstrap and len(rows) > 1 else None
    rate = win_rates(preferences)
    results: dict[str, Any] = {
        **asdict(rate),
        "avg_length": average_length(outputs),
        "win_rate_interval": percent_interval(p, cfg.confidence),
        "intervals_over": OVER,
        **_length_controlled(rows, p, control, counts, cfg),
        "confidence": cfg.confidence,
        "n_null": int(np.sum(np.isnan(p))),
    }
    own, base = [len(row.output_2) for row in rows], [len(row.output_1) for row in rows]
    results["length_bins"] = [asdict(b) for b in length_bins(own, base, p, cfg.length_bins, cfg.confidence)]
    return results


def _length_controlled(
    rows: Sequence[Annotation], p: Array, control: LengthControl | str, counts: Array | None, cfg: StatisticsConfig
) -> dict[str, Any]:
    if isinstance(control, str):
        return _unavailable(control)
    if all(row.output_1 == row.output_2 for row in rows):  # outputs equal to the reference's: 50 by definition
        details = {"available": True, "name": lc.NAME, "reason": "the outputs are the reference's: 50 by definition"}
        return _fields(50.0, 0.0, (50.0, 50.0), 0.0, details)
    delta = np.array([len(row.output_1) - len(row.output_2) for row in rows], dtype=np.float64)
    problem = lc.Problem(delta, control.difficulty, p, control.gamed)
    try:
        estimate = lc.fit(problem, cfg.c)
    except lc.UnavailableError as error:
        return _unavailable(str(error))
    bounds = spread = None
    if counts is not None:
        replicates = lc.replicates(problem, estimate.c, estimate.coefficients, counts)
        spread = deviation(replicates)
        known = p[~np.isnan(p)]
        # No fit tells more of a rate than the preferences themselves do.
        least = float(variance_ratio(np.mean(known), np.mean(known**2), len(known)))
        bounds = interval(estimate.win_rate, replicates, len(known), cfg.confidence, least=least)
    details = {
        "available": True,
        "name": lc.NAME,
        "c": estimate.c,
        "c_chosen_by": "five folds" if cfg.c is None else "statistics.c",
        "coefficients": dict(zip(("length", "difficulty", "model"), estimate.coefficients, strict=True)),
        "difficulty_by": "row position" if cfg.official_row_index else "instruction",
    }
    return _fields(estimate.win_rate, estimate.standard_error, bounds, spread, details)


def _unavailable(reason: str) -> dict[str, Any]:
    return _fields(None, None, None, None, {"available": False, "reason": reason})


def _fields(
    rate: float | None,
    error: float | None,
    bounds: tuple[float, float] | None,
    bootstrap_error: float | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    # AlpacaEval's column is the spread of the predictions over instructions, and leaves out that the fit is uncertain.
    return {
        "length_controlled_winrate": rate,
        "lc_standard_error": error,
        "lc_bootstrap_error": bootstrap_error,
        "length_controlled_winrate_interval": bounds,
        "length_controlled": dict(details),
    }

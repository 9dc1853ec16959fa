"""What an evaluation found, in words: better or worse than the reference, with the win rate, its interval and n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.runtime.wording import USUAL, rate

BETTER, WORSE, UNCLEAR, FEW_PAIRS = "better", "worse", "no evidence either way", "too few pairs"
FEW = 100  # pairs below which an interval is wider than 20 points


def verdict(results: Mapping[str, Any], what: str = "") -> dict[str, Any]:
    """Judge the content of results.json, of either protocol.

    Args:
        results: the results; those of earlier versions, too.
        what: what the reference is, where its name does not say so.

    Returns:
        outcome, sentence, share_won (the win rate from 0 to 1; None without one; not called win_rate, which is in per cent
        beside it), interval (None where there is none) and n.
    """
    win, n, base = results.get("win_rate"), results.get("n_total"), str(results.get("reference"))
    against = f"{base}, {what}" if what else base
    if win is None:
        return {"outcome": UNCLEAR, "sentence": f"nothing was judged against {against}", "share_won": None,
                "interval": None, "n": n}  # fmt: skip
    ends = results.get("win_rate_interval")
    interval = (ends[0] / 100, ends[1] / 100) if ends else None
    outcome, said = UNCLEAR, "not judged against chance without an interval"
    if interval is not None:
        outcome = BETTER if interval[0] > 0.5 else WORSE if interval[1] < 0.5 else UNCLEAR
        said = UNCLEAR if outcome == UNCLEAR else f"{outcome} than {base}"
    if outcome == UNCLEAR and n is not None and n < FEW:
        outcome, said = FEW_PAIRS, f"{FEW_PAIRS} to tell (n = {n})"
    return {
        "outcome": outcome,
        "sentence": f"{said}: win rate {rate(win / 100, n, interval, results.get('confidence', USUAL))}, against {against}",
        "share_won": win / 100,
        "interval": None if interval is None else list(interval),
        "n": n,
    }

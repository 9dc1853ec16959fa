"""Facts of a directory as `alphapo diff` prints them: rates with interval and n, keys of evaluations in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.cli.housekeeping.entries import EVALUATION, MALFORMED, RUN
from alphapo_cli.runs.state import RunState
from alphapo_cli.runs.verdict import sampled_answers
from alphapo_cli.runtime.wording import USUAL, rate
from alphapo_cli.storage import checksums
from alphapo_cli.storage.strict_json import read_object

# What a key of an evaluation's results.json is called; keys of runs are those of `alphapo metrics`.
NAMES = {
    "avg_length": "average length, characters",
    "discrete_win_rate": "discrete win rate",
    "length_controlled_winrate": "length-controlled win rate",
    "n_draws": "draws",
    "n_total": "answers judged",
    "n_wins": "won",
    "n_wins_base": "lost",
    "standard_error": "standard error, points",
    "true_reward": "true reward of the answers",
    "true_win_rate": "win rate by true reward",
    "win_rate": "win rate",
}
_ENDS = ("/low", "/high", "_interval")  # of what is said with its rate
_PAIRS = (
    "displacement/share_chosen_down",
    "displacement/quadrant/",
    "ranking/",
    "rewards/accuracies",
)  # shares of probe pairs


def is_said_elsewhere(key: str) -> bool:
    """Whether a key holds an end of an interval, which stands with its rate."""
    return key.endswith(_ENDS)


def rates(path: Path, kind: str) -> dict[str, str]:
    """The rates among a directory's results.

    Args:
        path: the directory.
        kind: as `entries.kind_of` has it.

    Returns:
        Key -> the rate with interval and n, where n is known; empty for kinds without, and for damaged files.
    """
    try:
        return _of_run(path) if kind == RUN else _of_evaluation(path) if kind == EVALUATION else {}
    except MALFORMED:
        return {}


def _of_run(path: Path) -> dict[str, str]:
    run = RunState(path)
    summary, outcome = run.summary() or {}, run.outcome()
    metrics, judged = summary.get("metrics") or {}, outcome.get("metrics") or {}
    pairs = (summary.get("data") or {}).get("probe_pairs")
    found = {key: rate(value, pairs) for key, value in metrics.items() if key.startswith(_PAIRS) and _is_share(value)}
    for key, value in metrics.items():
        low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
        if key.endswith("win_rate") and _is_share(value):
            found[key] = rate(value, sampled_answers(path), None if low is None or high is None else (low, high))
    for key, value in judged.items():
        if key.endswith(("win_rate", "winrate")) and _is_share(value):
            ends = (outcome.get("intervals") or {}).get(key)
            interval = None if ends is None else (ends[0], ends[1])
            found[key] = rate(value, judged.get("eval/n_total"), interval, outcome.get("confidence", USUAL))
    return found


def _of_evaluation(path: Path) -> dict[str, str]:
    results = checksums.intact(read_object(path / "results.json")) or {}
    found = {}
    for key in ("win_rate", "discrete_win_rate", "length_controlled_winrate", "true_win_rate"):
        value = results.get(key)
        if isinstance(value, int | float):
            whole = 1 if key == "true_win_rate" else 100
            ends = results.get(f"{key}_interval")
            interval = None if ends is None else (ends[0] / whole, ends[1] / whole)
            found[key] = rate(value / whole, results.get("n_total"), interval, results.get("confidence", USUAL))
    return found


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def named(key: str, kind: str, section: str, names: Mapping[str, str] = NAMES) -> str:
    """What a key is called in the list: a result of an evaluation in words, anything else by its own name."""
    return names.get(key, key) if kind == EVALUATION and section == "results" else key

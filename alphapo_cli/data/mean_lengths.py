"""Mean lengths of training pairs, for reports and the table of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.data.token_pairs import Index, TokenPairs

_ROWS = (
    ("mean prompt tokens", "mean_prompt_tokens", ".1f"),
    ("mean chosen tokens", "mean_chosen_tokens", ".1f"),
    ("mean rejected tokens", "mean_rejected_tokens", ".1f"),
    ("mean chosen minus rejected tokens", "mean_chosen_minus_rejected_tokens", "+.1f"),
)


def mean_lengths(pairs: TokenPairs) -> dict[str, float | None]:
    """Mean lengths in tokens by name; None of answers that no row has."""
    chosen, rejected = pairs.chosen.lengths, pairs.rejected.lengths
    return {
        "mean_prompt_tokens": float(pairs.prompt.lengths.mean()),
        "mean_chosen_tokens": _mean(chosen[chosen > 0]),
        "mean_rejected_tokens": _mean(rejected[rejected > 0]),
        "mean_chosen_minus_rejected_tokens": _mean((chosen - rejected)[(chosen > 0) & (rejected > 0)]),
    }


def rows_of_means(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (label, value) rows of a report's mean lengths."""
    return [(label, "none" if report[key] is None else format(report[key], form)) for label, key, form in _ROWS]


def _mean(values: Index) -> float | None:
    return float(values.mean()) if len(values) else None

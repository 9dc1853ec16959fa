"""The probability that a judge gives to its verdicts, and why it may give none."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from alphapo_cli.evaluation.judges.protocol import TopLogProbs
from alphapo_cli.evaluation.schema import JudgeConfig

_SPACES = " \t\n▁Ġ"  # as tokenizers write a space
_THINKING = ("<think", "<thought", "<reason", "<|think", "[think", "okay", "alright", "let")


def mass_figures(masses: Sequence[float]) -> dict[str, float | None]:
    """Summarise the verdicts' probabilities.

    Args:
        masses: P(m) + P(M) of each answer, 0 to 1.

    Returns:
        `median`, `lowest` and `share_below_half`; None without answers.
    """
    if not masses:
        return {"median": None, "lowest": None, "share_below_half": None}
    return {
        "median": statistics.median(masses),
        "lowest": min(masses),
        "share_below_half": sum(mass < 0.5 for mass in masses) / len(masses),
    }


def likeliest(answers: Iterable[TopLogProbs]) -> str:
    """The most frequent likeliest first tokens, in words."""
    counts = Counter(max(top, key=lambda entry: entry[1])[0] for top in answers if top)
    return ", ".join(f"{token!r} ({n} times)" for token, n in counts.most_common(3)) or "none"


def remedy(answers: Sequence[TopLogProbs], cfg: JudgeConfig) -> str:
    """What to change so that the judge's first token is a verdict."""
    first = [max(top, key=lambda entry: entry[1])[0] for top in answers if top]
    token = Counter(first).most_common(1)[0][0] if first else ""
    names = [name.strip(_SPACES) for name in cfg.verdict_tokens]
    if token.strip(_SPACES) in names and token not in cfg.verdict_tokens:
        mark = token[: len(token) - len(token.lstrip(_SPACES))]
        spelt = ", ".join(f'"{mark}{name}"' for name in names)
        return f"it writes a space before the letter: add 'judge.verdict_tokens=[{spelt}]'"
    if token.strip(_SPACES).lower().startswith(_THINKING):
        return (
            "it thinks before it answers: add judge.chat_template_kwargs.enable_thinking=false, or what its chat template "
            "calls it"
        )
    # The template may have opened the thought, whose first word can be any.
    return (
        "it does not begin with the letter: if it thinks first, add judge.chat_template_kwargs.enable_thinking=false; else "
        "try another judge.prompt_file or judge.model"
    )


def tokens_of(row: Any) -> tuple[tuple[str, float], ...]:
    """The top log-probs in a row of the journal."""
    return tuple((str(token), float(logprob)) for token, logprob in row["top_logprobs"])

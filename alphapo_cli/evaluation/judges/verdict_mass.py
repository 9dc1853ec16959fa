"""The probability that a judge gives to its verdicts, and why it may give none."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from alphapo_cli.evaluation.judges.protocol import TopLogProbs, is_verdict
from alphapo_cli.evaluation.schema import JudgeConfig
from alphapo_cli.generation.thinking import Thinking

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
        "share_below_half": sum(not is_verdict(mass, 0.5) for mass in masses) / len(masses),
    }


def shortfall(names: Sequence[str], least: float) -> str:
    """What answers that are no verdict lack: the `names` themselves, or `least` of the probability."""
    spelt = " nor ".join(map(repr, names))
    if least <= 0.0:
        return f"neither {spelt} is among the likeliest first tokens"
    return f"neither {spelt} has judge.min_mass={least:g} of the probability of the first token"


def likeliest(answers: Iterable[TopLogProbs]) -> str:
    """The most frequent likeliest first tokens, in words."""
    counts = Counter(max(top, key=lambda entry: entry[1])[0] for top in answers if top)
    return ", ".join(f"{token!r} ({n} times)" for token, n in counts.most_common(3)) or "none"


def template_remedy(template: Thinking) -> str:
    """What to change about a judge's chat template that opens a thought, or has a switch for thoughts."""
    does = "opens a thought" if template.opens else "lets it think"
    if template.switch is None:
        return (
            f"its chat template {does} and knows neither enable_thinking nor thinking: see which argument it has, for "
            "judge.chat_template_kwargs, or take another judge"
        )
    return f"its chat template {does}: add judge.chat_template_kwargs.{template.switch}"


def remedy(answers: Sequence[TopLogProbs], cfg: JudgeConfig, template: Thinking) -> str:
    """What to change so that the judge's first token is a verdict; `template`: what is known of its chat template."""
    if template.opens:
        return template_remedy(template)
    first = [max(top, key=lambda entry: entry[1])[0] for top in answers if top]
    token = Counter(first).most_common(1)[0][0] if first else ""
    names = [name.strip(_SPACES) for name in cfg.verdict_tokens]
    if token.strip(_SPACES) in names and token not in cfg.verdict_tokens:
        mark = token[: len(token) - len(token.lstrip(_SPACES))]
        spelt = ", ".join(f'"{mark}{name}"' for name in names)
        return f"it writes a space before the letter: add 'judge.verdict_tokens=[{spelt}]'"
    if template.switch is not None:
        return f"if it thinks first, {template_remedy(template)}; else try another judge.prompt_file or judge.model"
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

"""Truncation of tokenised pairs, and the counts that tokenising gives."""

from __future__ import annotations

from dataclasses import dataclass, fields

from alphapo_cli.config.schema import DataConfig

Ids = list[list[int]]  # a prompt's, then those of every side; with data.trajectories, then the turns of every side


@dataclass(frozen=True)
class TokenCounts:
    """Counts of pairs, except `tokens` and `unknown` (ids) and `truncated_completions`.

    Attributes:
        refused: left out because the chat template refused the conversation.
        lost: left out because the chat template leaves out a part of an answer, or writes it where it cannot be found.
        lost_kept: of the others, pairs whose answers are trained without the part that the template leaves out.
        emptied: left out because an answer, or a prompt without BOS, is empty.
        identical: left out because two answers have the same ids after truncation.
        boundary: a token crossed from prompt to completion and was split.
        inexact: of these, pairs whose ids no longer decode to the original text.
        truncated_prompts: prompt cut from the left.
        truncated_completions: completions cut from the right.
        truncated_pairs: anything was cut.
        special_inside: an answer contains a special token before its end.
        tokens: all ids of prompts and completions.
        unknown: ids of the unknown token among them.
    """

    refused: int = 0
    emptied: int = 0
    identical: int = 0
    boundary: int = 0
    inexact: int = 0
    truncated_prompts: int = 0
    truncated_completions: int = 0
    truncated_pairs: int = 0
    special_inside: int = 0
    tokens: int = 0
    unknown: int = 0
    lost: int = 0
    lost_kept: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def truncate(prompt: list[int], answers: list[list[int]], lead: int, cfg: DataConfig) -> tuple[Ids, TokenCounts]:
    """Truncate a prompt and its answers to `max_prompt_length` and `max_length`.

    The prompt is cut from the left, down to half of max_length; then completions are cut from the right, end token
    included, since a model must not learn to stop where the data were cut. A completion keeps at least one token.

    Args:
        prompt: ids of the prompt.
        answers: ids of every side.
        lead: number of first ids of the prompt that are never cut (BOS).
        cfg: `max_prompt_length` and `max_length`, in tokens.

    Returns:
        The ids of the prompt and of every side, and the counts of truncated ones.
    """
    kept = cut_left(prompt, cfg.max_prompt_length, lead)
    longest = max(map(len, answers))
    if len(kept) + longest > cfg.max_length:
        kept = cut_left(kept, max(cfg.max_length - longest, min(len(kept), cfg.max_length // 2)), lead)
    available = cfg.max_length - len(kept)
    prompts = int(len(kept) < len(prompt))
    completions = sum(len(ids) > available for ids in answers)
    counts = TokenCounts(
        truncated_prompts=prompts, truncated_completions=completions, truncated_pairs=int(prompts + completions > 0)
    )
    return [kept, *(ids[:available] for ids in answers)], counts


def cut_left(ids: list[int], length: int | None, lead: int) -> list[int]:
    """The last `length` ids, of which the first `lead` are the first of all (BOS); all of them for None."""
    if length is None or len(ids) <= length:
        return ids
    lead = min(lead, length)
    return ids[:lead] + ids[len(ids) - (length - lead) :]

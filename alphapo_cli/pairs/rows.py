"""The rows of the files that `alphapo score` and `alphapo pairs` write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphapo_cli.pairs.augment import Made
from alphapo_cli.pairs.build import Built
from alphapo_cli.pairs.candidates import GIVEN, SCORED_BY, SIDES, Answer, Candidates, mean_and_sd


def pair_row(made: Made, columns: Sequence[str]) -> dict[str, Any]:
    """A row of pairs.jsonl: prompt and answers as training reads them, and the numbers of the pair.

    Args:
        made: the row.
        columns: columns of scores; where there are several, each is a column of numbers by side.

    Returns:
        The row.
    """
    pair, prompt = made.pair, made.pair.candidates
    row: dict[str, Any] = {"prompt": prompt.content, **prompt.context}
    if made.system is not None:
        row["system"] = made.system
    row |= {"chosen": _reply(prompt, pair.chosen), "rejected": _reply(prompt, pair.rejected)}
    scores = {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected, "margin": pair.margin}
    row |= {name: value for name, value in scores.items() if value is not None}
    for column in columns if len(columns) > 1 else ():
        values = {
            f"{column}_chosen": pair.chosen.scores.get(column),
            f"{column}_rejected": pair.rejected.scores.get(column),
        }
        row |= {name: value for name, value in values.items() if value is not None}
    row |= {"p_chosen": made.p_chosen} if made.p_chosen is not None else {}
    row |= win_probabilities(prompt, pair.chosen, pair.rejected, columns)
    return {**row, **made.columns, "sources": [pair.chosen.source, pair.rejected.source], "stage": pair.stage}


def win_probabilities(prompt: Candidates, chosen: Answer, rejected: Answer, columns: Sequence[str]) -> dict[str, float]:
    """The mean probability of both sides to win, where the scores are such probabilities (pair_model, judge)."""
    column = next((name for name in ("pair_model", "judge") if name in columns), None)
    if column is None or column not in chosen.scores or column not in rejected.scores:
        return {}
    return {"win_chosen": chosen.scores[column], "win_rejected": rejected.scores[column]}


def list_row(prompt: Candidates, columns: Sequence[str], ranked_by: str | None) -> dict[str, Any]:
    """A row of scored.jsonl: all answers with the scores that ranked them, or by column where there are several."""
    known = [column for column in columns if all(column in answer.scores for answer in prompt.answers)]
    scores = {column: [answer.scores[column] for answer in prompt.answers] for column in known}
    row: dict[str, Any] = {"prompt": prompt.content, **prompt.context}
    row["responses"] = [answer.text for answer in prompt.answers]
    if ranked_by in scores:
        row["scores"] = scores[str(ranked_by)]
        more = {column: values for column, values in scores.items() if column != ranked_by}
        row |= {"more_scores": more} if more else {}
    row["sources"] = [answer.source for answer in prompt.answers]
    return row


def scored_row(prompt: Candidates, columns: Sequence[str]) -> dict[str, Any]:
    """A row of the scored.jsonl of `alphapo score`, which `alphapo pairs --answers` reads.

    Args:
        prompt: a prompt with its answers.
        columns: the columns of scores that any prompt has, so that all rows have the same form.

    Returns:
        The row; a score that is null is none.
    """
    scores = {column: [answer.scores.get(column) for answer in prompt.answers] for column in columns}
    row = {
        **prompt.columns, "prompt": prompt.content, **prompt.context,
        "responses": [answer.text for answer in prompt.answers],
        "scores": scores[columns[0]] if len(columns) == 1 else scores,
        "sources": [answer.source for answer in prompt.answers],
    }  # fmt: skip
    if len(columns) == 1:
        row[SCORED_BY] = columns[0]
    if prompt.given is not None:  # which answer the data prefer
        row[GIVEN] = [dict(zip(prompt.given, SIDES, strict=True)).get(n) for n in range(len(prompt.answers))]
    if any(answer.cut for answer in prompt.answers):
        row["cut"] = [answer.cut for answer in prompt.answers]
    if any(answer.features is not None for answer in prompt.answers):
        row["features"] = [answer.features for answer in prompt.answers]
    return row


def dropped_row(prompt: Candidates, reason: str) -> dict[str, Any]:
    """A row of dropped.jsonl."""
    return {"prompt": prompt.content, "reason": reason}


def summary_of(built: Built, prompts: int) -> dict[str, Any]:
    """The figures of summary.json; prompts_with_pairs and the reasons add up to prompts.

    Args:
        built: what came of the prompts.
        prompts: number of prompts.

    Returns:
        The figures.
    """
    margins = [pair.margin for pair in built.pairs if pair.margin is not None]
    differences = [float(len(p.chosen.text) - len(p.rejected.text)) for p in built.pairs]
    return {
        "prompts": prompts,
        "prompts_with_pairs": prompts - len(built.dropped),
        "dropped": built.reasons,
        "answers_left_out": dict(built.left_out),
        "pairs": len(built.pairs),
        "rows": len(built.made),
        "not_selected": dict(built.deselected),
        "length_weight": built.length_weight,
        "mean_margin": mean_and_sd(margins)[0] if margins else None,
        "mean_chars_difference": mean_and_sd(differences)[0] if differences else None,
        "stages": max((pair.stage for pair in built.pairs), default=1),
    }


def _reply(prompt: Candidates, answer: Answer) -> Any:
    return answer.text if isinstance(prompt.content, str) else [{"role": "assistant", "content": answer.text}]

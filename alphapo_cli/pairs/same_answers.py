"""Scores of the same answers in several files, by different scorers: joined, so that a mean of them can be taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alphapo_cli.errors import UsageError
from alphapo_cli.pairs.candidates import Answer, Candidates

Name = tuple[str, int, str]  # by which an answer is known: source, number, text


def merged(rows: Sequence[Candidates]) -> list[Candidates]:
    """The rows of one prompt, of which those that score the same answers by different columns are one.

    Args:
        rows: of one prompt.

    Returns:
        The rows, in their order; the first of those that belong together has all columns.
    """
    found: list[Candidates] = []
    for row in rows:
        at = next((n for n, one in enumerate(found) if _are_one(one, row)), None)
        if at is None:
            found.append(row)
            continue
        more = {_name(answer): answer.scores for answer in row.answers}
        answers = tuple(replace(a, scores={**a.scores, **more[_name(a)]}) for a in found[at].answers)
        found[at] = replace(found[at], answers=answers, columns={**row.columns, **found[at].columns})
    return found


def check_scored_alike(one: Sequence[Candidates], other: Sequence[Candidates], paths: tuple[Path, Path]) -> None:
    """Refuse two files that score some of the same answers by different columns, but not all.

    Args:
        one: the prompts of a file.
        other: those of another.
        paths: both files, for the message.

    Raises:
        UsageError: an answer is scored in one of them alone, so that no mean of both could be had.
    """
    columns = [{name for prompt in prompts for a in prompt.answers for name in a.scores} for prompts in (one, other)]
    if not columns[0] or not columns[1] or columns[0] & columns[1]:
        return
    held = [{(prompt.key, *_name(a)) for prompt in prompts for a in prompt.answers} for prompts in (one, other)]
    shared = held[0] & held[1]
    if shared and held[0] != held[1]:
        names = [", ".join(sorted(some)) for some in columns]
        raise UsageError(
            f"{paths[0]} ({names[0]}) and {paths[1]} ({names[1]}) have scores of {len(shared):,} answers in common, but "
            f"{len(held[0] - shared):,} and {len(held[1] - shared):,} more, so that the scores cannot be joined; score one "
            f"file by both (alphapo score {paths[0]} scorer=..., then scorer=mean scorer.of=[NAME,NAME])"
        )


def _are_one(a: Candidates, b: Candidates) -> bool:
    """Whether two rows of a prompt score the same answers, by columns of which none is in both."""
    columns = [{name for answer in row.answers for name in answer.scores} for row in (a, b)]
    names = [[_name(answer) for answer in row.answers] for row in (a, b)]
    distinct = len(set(names[0])) == len(names[0])
    return (
        bool(columns[0] and columns[1]) and not columns[0] & columns[1] and distinct and set(names[0]) == set(names[1])
    )


def _name(answer: Answer) -> Name:
    return answer.source, answer.number, answer.text

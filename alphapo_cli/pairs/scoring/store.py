"""Scores that were computed once: a JSONL file per scorer in the cache, keyed by the content of prompt and answer.

The file is named by everything that the numbers depend on beside the answers (weights, tokenizer and template, dtype,
settings), so that other answers of the same prompts cost nothing twice. A batch is written in one piece. Batches are made
of all answers whatever the file holds, and one of which anything is missing is computed whole: after a kill the same
numbers come out of the same line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from alphapo_cli.data.text_pairs import digest
from alphapo_cli.pairs.candidates import Answer, Candidates, is_score
from alphapo_cli.pairs.scoring.scorer import Scorer
from alphapo_cli.storage.jsonl import LineLog, read_jsonl

Units = list[Candidates]


def scored(
    prompts: Sequence[Candidates], scorer: Scorer, cache: Path, tick: Callable[[int], None] = lambda n: None
) -> tuple[list[Candidates], int]:
    """Add a scorer's column to the answers.

    Args:
        prompts: prompts with answers.
        scorer: the scorer; it is closed at the end.
        cache: the cache directory.
        tick: called with the number of answers after every batch.

    Returns:
        The prompts in the same order, and the number of answers that were scored now, not read from the cache.
    """
    units = _units(prompts, scorer)
    found: dict[str, list[float | None]] = {}
    new = 0
    with ExitStack() as stack:
        log = None
        if not scorer.free:
            file = cache / "scores" / f"{digest(scorer.identity())}.jsonl"
            log = stack.enter_context(LineLog(file, "alphapo score"))
            found = {row["key"]: row["scores"] for row in read_jsonl(file)}
        stack.callback(scorer.close)
        for batch in _batches(units, scorer):
            keys = [key_of(unit) for unit in batch]
            missing = [n for n, key in enumerate(keys) if key not in found]
            if missing:
                values = [[_number(value) for value in own] for own in scorer.score(batch)]
                rows = [{"key": keys[n], "scores": values[n]} for n in missing]
                if log is not None:
                    log.add(*rows)
                found |= {str(row["key"]): values[n] for n, row in zip(missing, rows, strict=True)}
                new += sum(len(batch[n].answers) for n in missing)
            tick(sum(len(unit.answers) for unit in batch))
    by_answer = _by_answer(units, found)
    return [_with(prompt, scorer.column, by_answer) for prompt in prompts], new


def _number(value: float | None) -> float | None:
    """A number by which pairs can be made: a model that overflowed gives none."""
    return value if value is not None and is_score(value) else None


def key_of(unit: Candidates) -> str:
    """Hash of a prompt and the answers that are scored together."""
    return digest([unit.key, unit.ids, [[answer.text, answer.ids, answer.cut] for answer in unit.answers]])


def _units(prompts: Sequence[Candidates], scorer: Scorer) -> Units:
    if scorer.together:
        return list(prompts)
    return [replace(prompt, answers=(answer,), given=None) for prompt in prompts for answer in prompt.answers]


def _batches(units: Units, scorer: Scorer) -> list[Units]:
    """Batches of neighbours in length, apart for each number of answer: more answers add batches and change none."""
    if scorer.batch is None:
        return [units] if units else []

    def place(unit: Candidates) -> tuple[str, int, int, str]:
        answer = unit.answers[0] if unit.answers and not scorer.together else Answer("")
        return answer.source, answer.number, len(unit.text) + sum(len(a.text) for a in unit.answers), key_of(unit)

    found: list[Units] = []
    group: tuple[str, int] | None = None
    places = {id(unit): place(unit) for unit in units}
    for unit in sorted(units, key=lambda unit: places[id(unit)]):
        own = places[id(unit)][:2]
        if own != group or len(found[-1]) == scorer.batch:
            found.append([])
        found[-1].append(unit)
        group = own
    return found


_Place = tuple[str, str, int, str]  # of an answer: hash of its prompt, source, number, text


def _by_answer(units: Units, found: Mapping[str, list[float | None]]) -> dict[_Place, float | None]:
    return {
        _place(unit, answer): value
        for unit in units
        for answer, value in zip(unit.answers, found[key_of(unit)], strict=True)
    }


def _with(prompt: Candidates, column: str, values: Mapping[_Place, float | None]) -> Candidates:
    answers = []
    for answer in prompt.answers:
        value = values[_place(prompt, answer)]
        others = {name: score for name, score in answer.scores.items() if name != column}
        answers.append(replace(answer, scores=others if value is None else {**others, column: value}))
    return replace(prompt, answers=tuple(answers))


def _place(prompt: Candidates, answer: Answer) -> _Place:
    return replace(prompt, given=None).key, answer.source, answer.number, answer.text

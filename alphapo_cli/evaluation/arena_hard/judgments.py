"""model_judgment/<judge>/<model>.jsonl in both of the public tool's forms, read; in v2.0's, written.

v0.1   {"question_id", "model", "judge", "games": [{"user_prompt", "judgment": text, "score"}, ...]}
v2.0   {"uid", "category", "judge", "model", "baseline", "games": [{"score", "judgment": {"answer"}, "prompt"}, ...]}

The first game shows the baseline as A, the second the model. Source: lmarena/arena-hard-auto, gen_judgment.py at bc367c0
(v0.1) and 196f6b8 (v2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError
from alphapo_cli.evaluation.arena_hard.answers import Answer, Answers
from alphapo_cli.evaluation.arena_hard.verdicts import known
from alphapo_cli.evaluation.formats import short
from alphapo_cli.evaluation.json_rows import read_rows
from alphapo_cli.evaluation.output_check import WITH, WITHOUT, without_thought

Pairs = Sequence[tuple[Answer, Answer]]  # (baseline's, model's)


@dataclass(frozen=True)
class Game:
    """One judgement. `label`: a key of `LABELS`, None without a verdict; `text`: what the judge wrote, if known."""

    label: str | None
    text: str | None = None
    prompt: str | None = None  # what it was shown


@dataclass(frozen=True)
class JudgedPair:
    """Both games of one question; a game that was not played has no label and no text."""

    uid: str
    first: Game
    second: Game


@dataclass(frozen=True)
class Judgments:
    """A model_judgment file; names are None where no row has them."""

    path: str
    model: str | None
    baseline: str | None
    judge: str | None
    rows: tuple[JudgedPair, ...]

    def by_uid(self) -> dict[str, JudgedPair]:
        """The rows by uid."""
        return {row.uid: row for row in self.rows}


def read_judgments(path: Path) -> Judgments:
    """Read a model_judgment file.

    Args:
        path: the file.

    Returns:
        Its rows; a score that is no label counts as no verdict.

    Raises:
        UsageError: the file is unreadable, a row is no judgement, a question occurs twice, or models or baselines are
            mixed.
    """
    rows, names = [], []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        if "games" not in row:
            also = " (AlpacaEval's annotations go without --protocol arena_hard)" if "preference" in row else ""
            raise UsageError(f"{where}: no 'games' (its columns: {', '.join(map(str, row)) or 'none'}){also}")
        uid, games = row.get("uid", row.get("question_id")), row["games"]
        if not isinstance(uid, str | int) or isinstance(uid, bool):
            raise UsageError(f"{where}: no 'uid' or 'question_id'")
        if not isinstance(games, list) or not 1 <= len(games) <= 2:
            raise UsageError(f"{where}: 'games' must be a list of two games")
        played = [_game(game, where) for game in [*games, None][:2]]
        rows.append(JudgedPair(str(uid), *played))
        names.append((row.get("model"), row.get("baseline"), row.get("judge")))
    first: dict[str, int] = {}
    for number, pair in enumerate(rows, start=1):
        if pair.uid in first:
            raise UsageError(f"{path}: question {pair.uid} is judged twice (rows {first[pair.uid]} and {number})")
        first[pair.uid] = number
    model, baseline, judge = (_one(values, path) for values in zip(*names, strict=True))
    return Judgments(str(path), model, baseline, judge, tuple(rows))


def check_judgments(
    judgments: Judgments, outputs: Answers, reference: Answers, pairs: Pairs, whole: Pairs | None = None
) -> None:
    """Check that judgements are of these answers.

    Args:
        judgments: the file.
        outputs: the model's answers.
        reference: the baseline's.
        pairs: (baseline's, model's) answers to each question.
        whole: the same with their thoughts, where these were removed.

    Raises:
        UsageError: the file names another model or baseline, has none of the questions, or its prompts show other answers.
    """
    sides = (("model", judgments.model, outputs), ("baseline", judgments.baseline, reference))
    for role, name, answers in sides:
        if name is not None and answers.named and name != answers.generator:
            raise UsageError(f"{judgments.path} judges the {role} {name!r}, {answers.path} is by {answers.generator!r}")
    known_rows = judgments.by_uid()
    shared = [(base, own) for base, own in pairs if base.uid in known_rows]
    if not shared:
        raise UsageError(
            f"{judgments.path} has none of the questions of {outputs.path} (its first uid is {judgments.rows[0].uid}); "
            "--questions FILE gives AlpacaEval's outputs the public uids"
        )
    other = [(base, own) for base, own in shared if not _shows(known_rows[base.uid], base.text, own.text)]
    hint = ""
    if other and all(_shows(known_rows[b.uid], without_thought(b.text), without_thought(o.text)) for b, o in other):
        hint = WITHOUT
    if not other and whole is not None:  # what is left of an answer stands in the whole one, too
        other, hint = [pair for pair in whole if _shows_thoughts(known_rows.get(pair[0].uid), *pair)], WITH
    if other:
        raise UsageError(
            f"{judgments.path} judges other answers than {outputs.path} and {reference.path}: {len(other)} of "
            f"{len(shared)} differ, first at {short(other[0][1].instruction)}{hint}"
        )


def judgment_rows(
    pairs: Sequence[tuple[Answer, Answer]], games: Sequence[JudgedPair | None], names: tuple[str, str, str]
) -> Iterator[dict[str, Any]]:
    """The rows of a model_judgment file in v2.0's form.

    Args:
        pairs: (baseline's, model's) answers.
        games: the judgement of each pair; None: it has no row.
        names: judge, model and baseline.

    Yields:
        One row for each judged pair.
    """
    judge, model, baseline = names
    for (_, own), judged in zip(pairs, games, strict=True):
        if judged is None:
            continue
        both = [judged.first, judged.second]
        yield {
            "uid": own.uid, "category": own.category or "hard_prompt", "judge": judge, "model": model,
            "baseline": baseline, "games": [_written(game) for game in both],
        }  # fmt: skip


def answer_rows(answers: Sequence[Answer], model: str, metadata: Sequence[Mapping[str, Any] | None]) -> Iterator[Any]:
    """The rows of a model_answer file in v2.0's form; `metadata`: of each answer, None where its tokens are unknown."""
    for row, counted in zip(answers, metadata, strict=True):
        messages = [
            {"role": "user", "content": row.instruction},
            {"role": "assistant", "content": {"answer": row.text}},
        ]
        yield {"uid": row.uid, "ans_id": row.uid, "model": model, "messages": messages} | (
            {} if counted is None else {"metadata": {"token_len": row.tokens, **counted}}
        )


def _written(game: Game) -> dict[str, Any] | None:
    if game.text is None and game.label is None:
        return None
    shown = [] if game.prompt is None else [{"role": "user", "content": game.prompt}]
    return {"score": game.label, "judgment": {"answer": game.text or ""}, "prompt": shown}


def _game(game: Any, where: str) -> Game:
    if game is None:
        return Game(None)
    if not isinstance(game, dict) or "score" not in game:
        raise UsageError(f"{where}: a game has no 'score'")
    said, shown = game.get("judgment"), game.get("user_prompt")
    text = said.get("answer") if isinstance(said, dict) else said
    if shown is None and isinstance(game.get("prompt"), list):
        asked = [m for m in game["prompt"] if isinstance(m, dict) and m.get("role") != "system"]
        shown = "\n\n".join(str(message.get("content") or "") for message in asked)
    return Game(
        known(game["score"]), text if isinstance(text, str) else None, shown if isinstance(shown, str) else None
    )


def _shows(judged: JudgedPair, *answers: str) -> bool:
    """Whether the answers stand in what the judge was shown, as far as the file has it."""
    shown = [game.prompt for game in (judged.first, judged.second) if game.prompt]
    # A template may strip white space around an answer.
    return all(answer.strip() in text for text in shown for answer in answers)


def _shows_thoughts(judged: JudgedPair | None, *answers: Answer) -> bool:
    """Whether the judge was shown one of the answers with its thoughts."""
    if judged is None or not any(game.prompt for game in (judged.first, judged.second)):
        return False
    return any(without_thought(row.text) != row.text and _shows(judged, row.text) for row in answers)


def _one(values: Sequence[Any], path: Path) -> str | None:
    distinct = list(dict.fromkeys(str(value) for value in values if value is not None))
    if len(distinct) > 1:
        raise UsageError(
            f"{path}: {distinct[0]!r} and {distinct[1]!r} in one file; split it by model, baseline and judge"
        )
    return distinct[0] if distinct else None

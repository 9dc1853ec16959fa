"""Answers to make pairs of: directories of `alphapo generate`, and files of rows made elsewhere.

    column                     of a file (JSONL, JSON, Parquet)
    prompt (or instruction)    text or messages; or none, where chosen and rejected are whole conversations
    responses or completions   a list of answers: texts, one assistant message each, or objects with a text and a score
    scores                     a list of numbers (its name: scored_by, else score), or an object of such lists by name
    sources, features, cut     lists beside it: who gave each answer, a vector of each, whether a token limit ended it
    given                      a list beside it, too: "chosen" and "rejected" at the answers of a given pair, else null
    chosen, rejected           a given pair, with score_chosen and score_rejected

Rows of one prompt are joined by its hash, whichever files they come from, so that the order of rows plays no part.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphapo_cli.data.messages import encodable, message_list
from alphapo_cli.data.row_context import numbers
from alphapo_cli.data.scored_answers import LISTS, RATINGS, TEXTS
from alphapo_cli.data.sources import Row, read_files, suffix_of
from alphapo_cli.errors import UsageError, first_line, say
from alphapo_cli.generation.schema import ANSWERS, PROMPTS
from alphapo_cli.pairs.beside_answers import SCORE, check_features, given_of_list, score_of, scored_by, vector
from alphapo_cli.pairs.candidates import GIVEN, SCORED_BY, SELF, SIDES, Answer, Candidates
from alphapo_cli.pairs.same_answers import check_scored_alike, merged
from alphapo_cli.storage.checksums import check_beside, intact
from alphapo_cli.storage.jsonl import read_jsonl
from alphapo_cli.storage.strict_json import half_character, read_object

SCORED = "scored.jsonl"  # of alphapo score and alphapo pairs
_CONTEXT = ("system", "tools", "documents", "chat_template_kwargs")


def read(paths: Sequence[Path]) -> list[Candidates]:
    """Read answers from directories and files.

    Args:
        paths: directories of `alphapo generate`, and data files. The first directory's answers have the source `SELF`,
            another's the name of its generator, a file's the file's name or what its `sources` says.

    Returns:
        Each prompt once, with the answers of all paths.

    Raises:
        UsageError: a path is missing or holds no answers, or a row is malformed; the message names it.
    """
    parts: list[list[Candidates]] = []
    directories = 0
    for path in paths:
        path = path.expanduser()
        if path.is_dir():
            parts.append(of_directory(path, own=directories == 0))
            directories += 1
        else:
            parts.append(of_file(path))
    for (a, one), (b, other) in itertools.combinations(zip(paths, parts, strict=True), 2):
        check_scored_alike(one, other, (a, b))
    rows = [row for part in parts for row in part]
    check_features(rows)
    found = joined(rows)
    given = [sum(one.given is not None for one in some) for some in (rows, found)]
    if given[0] > given[1]:
        say(f"note: {given[0] - given[1]:,} given pairs are there already and count once", file=sys.stderr)
    return found


def of_directory(folder: Path, *, own: bool = True) -> list[Candidates]:
    """The answers that `alphapo generate` left in `folder`; UsageError where there are none or they are not all there."""
    missing = [name for name in (ANSWERS, PROMPTS) if not (folder / name).is_file()]
    summary = intact(read_object(folder / "summary.json")) or {}
    if missing:
        made = (folder / "model_outputs.json").is_file()
        fix = "type its alphapo generate line again with --replace" if made else "give a directory of alphapo generate"
        if (folder / SCORED).is_file():
            fix = f"give {folder / SCORED}"
        raise UsageError(f"{folder}: holds no {missing[0]}; {fix}")
    if summary.get("state") != "complete":
        raise UsageError(f"{folder}: its answers are not all there; type its alphapo generate line again")
    for name in (ANSWERS, PROMPTS):
        check_beside(folder / name)
    source = SELF if own else str(summary.get("generator") or folder.name)
    answers: dict[str, list[Answer]] = {}
    try:
        for row in read_jsonl(folder / ANSWERS):
            answers.setdefault(row["prompt"], []).append(_sampled(row, source))
        return [_of_generation(row, answers.get(row["prompt"], []), folder) for row in read_jsonl(folder / PROMPTS)]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder}: {ANSWERS} or {PROMPTS} holds a row that is none of alphapo generate's ({first_line(error)}); type its "
            "alphapo generate line again with --replace"
        ) from error


def _sampled(row: Mapping[str, Any], source: str) -> Answer:
    """An answer of alphapo generate; KeyError, TypeError or ValueError for anything else."""
    logprob = row["logprob"]
    if not isinstance(row["output"], str) or half_character(row["output"]) is not None:
        raise ValueError("an output is no text")
    return Answer(
        row["output"], int(row["number"]), source, tuple(int(i) for i in row["ids"]), bool(row["cut"]),
        None if logprob is None else float(logprob),
    )  # fmt: skip


def _of_generation(row: Mapping[str, Any], answers: Iterable[Answer], folder: Path) -> Candidates:
    arguments = dict(row.get("arguments") or {})
    context = {"system": row["system"]} if "system" in row else {}
    context |= {name: arguments.pop(name) for name in ("tools", "documents") if name in arguments}
    context |= {"chat_template_kwargs": arguments} if arguments else {}
    if not _is_prompt(row["content"]):
        raise ValueError("a prompt is neither text nor messages")
    ids = tuple(int(i) for i in row["ids"])
    return Candidates(row["content"], tuple(answers), context, {}, ids, where=f"{folder}")


def of_file(path: Path) -> list[Candidates]:
    """The rows of a file; UsageError for a malformed one."""
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file or directory; give a directory of alphapo generate, or a file of answers"
        )
    if suffix_of(path) is None:
        raise UsageError(f"{path}: unknown file type; give JSONL, JSON or Parquet")
    rows = read_files([path])
    if not rows:
        raise UsageError(f"{path}: holds no rows; each needs a prompt and responses")
    return [_of_row(row, path.name.partition(".")[0]) for row in rows]


def _of_row(row: Row, source: str) -> Candidates:
    values = row.values
    name = next((name for name in LISTS if isinstance(values.get(name), list)), None)
    content = values.get("prompt") if values.get("prompt") is not None else values.get("instruction")
    given: tuple[int, int] | None = None
    if name is not None:
        answers = _listed(row, name, source)
        given = given_of_list(row, len(answers))
        used = {name, "scores", "sources", "features", "cut", GIVEN, SCORED_BY}
    elif values.get("chosen") is not None and values.get("rejected") is not None:
        content, answers = _given(row, content, source)
        given = (0, 1)
        used = {"chosen", "rejected", "score_chosen", "score_rejected"}
    else:
        raise UsageError(f"{row.where}: no 'responses' and no 'chosen' and 'rejected' (columns: {', '.join(values)})")
    if isinstance(content, list) and content:
        content = list(message_list(content, row, "prompt"))
    if not _is_prompt(content):
        raise UsageError(f"{row.where}: no 'prompt' of text or messages (columns: {', '.join(values)})")
    if isinstance(content, str):
        encodable(content, row, "prompt")
    context = {key: values[key] for key in _CONTEXT if values.get(key) is not None}
    used |= {"prompt", "instruction", *context}
    texts = {key: value for key, value in values.items() if key not in used and isinstance(value, str)}
    columns = {**texts, **numbers(row, used)}
    return Candidates(content, tuple(answers), context, columns, given=given, where=row.where)


def _is_prompt(content: Any) -> bool:
    if isinstance(content, list):
        return bool(content) and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in content)
    return isinstance(content, str) and bool(content.strip())


def _listed(row: Row, name: str, source: str) -> list[Answer]:
    """The answers of a list, with scores and sources beside them."""
    values = row.values
    found_texts = [_answer(value, row, f"{name}[{i}]") for i, value in enumerate(values[name])]
    texts, own = [text for text, _ in found_texts], [score for _, score in found_texts]
    scores = values.get("scores")
    named: dict[str, Any] = (
        dict(scores) if isinstance(scores, Mapping) else {scored_by(row): scores} if scores is not None else {}
    )
    if not named and any(score is not None for score in own):
        named = {SCORE: list(own)}
    beside = {key: values.get(key) for key in ("sources", "features", "cut")}
    for key, column in (*named.items(), *beside.items()):
        if column is not None and (not isinstance(column, list) or len(column) != len(texts)):
            raise UsageError(f"{row.where}: '{key}' must be a list with one entry for each of {len(texts)} answers")
    sources = beside["sources"] or [source] * len(texts)
    features = beside["features"] or [None] * len(texts)
    cut = beside["cut"] or [False] * len(texts)
    if not all(isinstance(one, bool) for one in cut):
        raise UsageError(f"{row.where}: 'cut' must be a list of true and false")
    answers = []
    for i, text in enumerate(texts):
        found = {key: score_of(column[i], row, f"{key}[{i}]") for key, column in named.items()}
        kept = {key: value for key, value in found.items() if value is not None}
        answers.append(Answer(text, i, str(sources[i]), cut=cut[i], scores=kept, features=vector(features[i], row, i)))
    return answers


def _given(row: Row, content: Any, source: str) -> tuple[Any, list[Answer]]:
    """The prompt and both answers of a pair."""
    answers = []
    for number, name in enumerate(SIDES):
        value = row.values[name]
        if isinstance(value, list) and len(value) > 1:
            content, value = content if content is not None else value[:-1], value[-1:]
        text, _ = _answer(value, row, name)
        score = score_of(row.values.get(f"score_{name}"), row, f"score_{name}")
        answers.append(Answer(text, number, source, scores={} if score is None else {SCORE: score}))
    return content, answers


def _answer(value: Any, row: Row, name: str) -> tuple[str, Any]:
    """The text of an answer, and a score that it holds itself."""
    score = None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    elif isinstance(value, Mapping):
        score = next((value[key] for key in RATINGS if value.get(key) is not None), None)
        value = next((value[key] for key in TEXTS if value.get(key) is not None), None)
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{name}' is no text, no single message and no object with a text")
    return encodable(value, row, name), score


def joined(rows: Sequence[Candidates]) -> list[Candidates]:
    """Each prompt once, in the order in which prompts come first.

    Args:
        rows: prompts with answers; several may be of one prompt.

    Returns:
        The prompts with all answers, by source and number; a given pair that comes twice is one. Nothing but the order of
        the prompts depends on that of the rows, also where they contradict one another.
    """
    found: dict[str, list[Candidates]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return [_one(same) for same in found.values()]


def _one(rows: Sequence[Candidates]) -> Candidates:
    """The rows of one prompt as one."""
    if len(rows) == 1 and rows[0].given is not None:
        return rows[0]
    rows = merged(sorted(rows, key=_content))
    if rows[0].given is not None:
        return rows[0]
    columns: dict[str, Any] = {}
    for row in rows:
        columns = {**row.columns, **columns}
    ids = next((row.ids for row in rows if row.ids is not None), None)
    answers = _in_order([answer for row in rows for answer in row.answers])
    return replace(rows[0], answers=answers, columns=columns, ids=ids)


def _content(row: Candidates) -> tuple[bool, str]:
    """What decides between rows of one prompt: messages before text, then all that they hold."""
    held = [[answer.text, dict(sorted(answer.scores.items()))] for answer in row.answers]
    return isinstance(row.content, str), json.dumps([dict(sorted(row.columns.items())), held])


def _in_order(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    def place(answer: Answer) -> tuple[bool, str, int, str, list[tuple[str, float]]]:
        return answer.source != SELF, answer.source, answer.number, answer.text, sorted(answer.scores.items())

    return tuple(sorted(answers, key=place))


def columns_of(prompts: Sequence[Candidates]) -> list[str]:
    """Every column of scores, in alphabetical order."""
    return sorted({name for prompt in prompts for answer in prompt.answers for name in answer.scores})
